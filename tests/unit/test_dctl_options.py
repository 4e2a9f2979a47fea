"""How the command line is spelt: ranges, parameters, durations, paths, and the words of `run`."""

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctl.__main__ import COMMANDS, cli
from dctl.options import DurationType, MatrixType, ParamType, RangeType, gathered, job_number, task_number
from dctl.run import command_words, split_items, templated
from dctl.submit import Inputs, spread_paths
from districomp.arguments import substitute
from districomp.client import Client
from districomp.errors import UsageError
from districomp.taskdef import Definition, Param


def read_range(text: str) -> range:
    return RangeType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1..3", [1, 2, 3]),
        ("5..5", [5]),
        ("3..1", [3, 2, 1]),
        ("0..10:5", [0, 5, 10]),
        ("0..9:5", [0, 5]),
        ("10..0:-5", [10, 5, 0]),
        ("10..1:5", [10, 5]),
        ("-2..1", [-2, -1, 0, 1]),
        ("-1..-3", [-1, -2, -3]),
    ],
)
def test_a_range_has_both_ends_as_in_the_shell(text: str, numbers: list[int]) -> None:
    assert list(read_range(text)) == numbers


@pytest.mark.parametrize(
    "text", ["", "1", "1-5", "1..", "..5", "1..5:", "1..5:0", "a..b", "1..5..9", "1" * 30 + "..2", "1.5..2"]
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(click.BadParameter):
        read_range(text)


@given(st.integers(-999, 999), st.integers(-999, 999), st.integers(1, 50))
def test_a_range_starts_at_its_first_end_and_never_passes_the_other(first: int, last: int, step: int) -> None:
    numbers = list(read_range(f"{first}..{last}:{step}"))
    assert numbers[0] == first
    assert len(numbers) == abs(last - first) // step + 1
    assert all(min(first, last) <= number <= max(first, last) for number in numbers)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0.5", 0.5), ("500ms", 0.5), ("1h30m", 5400), ("10min", 600)]
)
def test_a_duration_is_seconds_or_has_units(text: str, seconds: float) -> None:
    assert DurationType().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1x", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DurationType().convert(text, None, None)


def test_parameters_given_again_become_a_list() -> None:
    pairs = [ParamType().convert(text, None, None) for text in ("a=1", "b=x=y", "a=2", "c=", "a=3")]
    assert gathered(tuple(pairs)) == {"a": ["1", "2", "3"], "b": "x=y", "c": ""}


def test_a_matrix_has_a_name_and_values() -> None:
    pairs = tuple(MatrixType().convert(text, None, None) for text in ("a=1,2", "b=x=y,,z"))
    assert Inputs(matrix=pairs).as_keywords() == {"matrix": {"a": ["1", "2"], "b": ["x=y", "", "z"]}}
    with pytest.raises(UsageError, match="--matrix a is given twice"):
        Inputs(matrix=(*pairs, pairs[0])).as_keywords()
    with pytest.raises(UsageError, match="one form of input"):
        Inputs(matrix=pairs, data="x").as_keywords()


@pytest.mark.parametrize("text", ["", "a", "=b", "=", "a="])
def test_what_is_no_matrix(text: str) -> None:
    with pytest.raises(click.BadParameter):
        MatrixType().convert(text, None, None)


@pytest.mark.parametrize("text", ["", "a", "=b", "="])
def test_what_is_no_parameter(text: str) -> None:
    with pytest.raises(click.BadParameter):
        ParamType().convert(text, None, None)


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        (["d", "--each-file", "a", "b", "--wait"], ["d", "--each-file=a", "--each-file=b", "--wait"]),
        (["--each-file", "a", "--name", "x", "d"], ["--each-file=a", "--name", "x", "d"]),
        (["--each-file=a", "d"], ["--each-file=a", "d"]),
        (["d", "--each-file", "a", "--each-file", "b", "c"], ["d", "--each-file=a", "--each-file=b", "--each-file=c"]),
        (["d", "--", "--each-file", "a"], ["d", "--", "--each-file", "a"]),
    ],
)
def test_each_file_takes_all_paths_up_to_the_next_option(given: list[str], spread: list[str]) -> None:
    assert spread_paths(given) == spread


@pytest.mark.parametrize("given", [["d", "--each-file"], ["d", "--each-file", "--wait"]])
def test_each_file_without_a_path(given: list[str]) -> None:
    with pytest.raises(click.UsageError, match="at least one path"):
        spread_paths(given)


def test_one_form_of_input_a_submission() -> None:
    assert Inputs().as_keywords() == {}
    assert Inputs(data="").as_keywords() == {"data": b""}
    assert Inputs(data="\udcff").as_keywords() == {"data": b"\xff"}
    assert Inputs(numbers=range(3)).as_keywords() == {"range": range(3)}
    with pytest.raises(UsageError, match="one form"):
        Inputs(data="a", numbers=range(3)).as_keywords()
    with pytest.raises(UsageError, match="one form"):
        Inputs(each_line="-", each_file=("a",)).as_keywords()


# ---- run ----

SHELL = Definition("shell", "", "", "command", ["{argv}"], params={"argv": Param("list", expand=True)})


def run_words(command: list[str], items: list[str] | None) -> list[list[str]]:
    """What the tasks of a `dctl run` are given to execute, by the definition's own rules."""
    argv = templated(command_words(command), has_items=items is not None)
    return [substitute(SHELL, {"argv": argv}, item, index) for index, item in enumerate(items or [None])]


@pytest.mark.parametrize(
    ("command", "items", "executed"),
    [
        (["echo", "{}"], ["a b", "c"], [["echo", "a b"], ["echo", "c"]]),
        (["echo"], ["a"], [["echo", "a"]]),
        (["echo", "x{}y{}"], ["1"], [["echo", "x1y1"]]),
        (["awk", "{print $1}", "{}"], ["f"], [["awk", "{print $1}", "f"]]),
        (["awk '{print $1}' {}"], ["f"], [["awk", "{print $1}", "f"]]),
        (["echo {}"], ["a b"], [["echo", "a b"]]),
        (["echo", "a b"], None, [["echo", "a b"]]),
        (["find", ".", "-exec", "ls", "{}", ";"], None, [["find", ".", "-exec", "ls", "{}", ";"]]),
        (["echo", "{item}", "{{}}"], ["z"], [["echo", "{item}", "{z}"]]),
        (["echo"], ["{item}"], [["echo", "{item}"]]),
    ],
)
def test_the_words_of_run(command: list[str], items: list[str] | None, executed: list[list[str]]) -> None:
    assert run_words(command, items) == executed


@given(st.lists(st.text("{}ab ;", max_size=6), min_size=2, max_size=4))
def test_run_without_items_executes_the_words_as_they_are(words: list[str]) -> None:
    assert run_words(words, None) == [words]


def test_items_stand_after_three_colons() -> None:
    assert split_items(["echo", "a"]) == (["echo", "a"], None)
    assert split_items(["echo", ":::", "a", "b"]) == (["echo"], ["a", "b"])
    for words in (["echo", ":::", "a", ":::", "b"], ["echo", "::::", "file"]):
        with pytest.raises(UsageError, match=":::"):
            split_items(words)
    with pytest.raises(UsageError, match="without an item"):
        split_items(["echo", ":::"])


@pytest.mark.parametrize(("command", "said"), [([], "no command"), ([""], "empty"), (["echo 'a"], "quotes")])
def test_what_is_no_command(command: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        command_words(command)


# ---- names of jobs and tasks ----


@pytest.mark.parametrize("text", ["", "x", "-1", "1.2", "9" * 30, "\N{FULLWIDTH DIGIT FOUR}"])
def test_what_is_no_job(text: str) -> None:
    with pytest.raises(UsageError, match="dctl job list"):
        job_number(Client(), text)


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "a.b", "1.2.3", "1." + "9" * 30])
def test_what_is_no_task(text: str) -> None:
    with pytest.raises(UsageError):
        task_number(Client(), text)


# ---- every command ----


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        else:
            found.append(((*path, name), command))
    return found


def test_the_table_of_commands_names_what_there_is() -> None:
    names = [" ".join(path) for path, _command in commands(cli)]
    assert {
        "submit",
        "run",
        "wait",
        "results",
        "cancel",
        "status",
        "job list",
        "job show",
        "task show",
        "worker list",
    } <= set(names)
    assert len(COMMANDS) <= len(names)


@pytest.mark.parametrize("path", [path for path, _command in commands(cli)], ids=" ".join)
def test_every_verb_has_help_with_an_example_of_itself(path: tuple[str, ...]) -> None:
    command = dict(commands(cli))[path]
    text = command.get_help(click.Context(command, info_name=path[-1]))
    assert "Example" in text
    assert f"dctl {' '.join(path)}" in text
    assert command.help
