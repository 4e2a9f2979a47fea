"""A checked definition's params, arguments, items and version."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from districomp.arguments import Arguments, ItemError, ItemRules, check_item, item_text, substitute, uses_item
from districomp.model import Blob, File, Item
from districomp.placeholders import ARGUMENT_BYTES_MAX, Place, escape_argument, run_template, split_argument
from districomp.taskdef import (
    LIST_ENTRIES_MAX,
    Definition,
    Limits,
    Param,
    ParamsError,
    check_params,
    decode_definition,
    encode_definition,
    with_digest,
)

Type = Literal["str", "int", "float", "bool", "path", "list"]


def definition(*argv: str, **params: Param) -> Definition:
    return Definition("d", "", "", "command", list(argv), params=params)


SHELL = definition("{argv}", argv=Param("list", min=1, expand=True))


# ---- version ----


def test_the_version_covers_everything_but_itself_and_no_order() -> None:
    a, b = Param("int"), Param("str")
    one = with_digest(definition("x", p=a, q=b))
    assert len(one.digest) == 64
    assert with_digest(one) == one
    assert with_digest(replace(one, params={"q": b, "p": a})).digest == one.digest
    others = [
        replace(one, name="e"),
        replace(one, argv=["y"]),
        replace(one, bundle="ab" * 32),
        replace(one, env={"A": "b"}),
        replace(one, limits=Limits(time_s=1.0)),
        replace(one, params={"p": a}),
    ]
    assert len({with_digest(other).digest for other in others} | {one.digest}) == len(others) + 1


def test_a_definition_survives_its_encoding() -> None:
    whole = with_digest(definition("x", p=Param("list", 1, 2, ["a"], True)))
    assert decode_definition(encode_definition(whole)) == whole


# ---- params ----


@pytest.mark.parametrize(
    ("kind", "given_value", "value"),
    [
        ("int", 5, 5),
        ("int", "-5", -5),
        ("int", 2**63 - 1, 2**63 - 1),
        ("float", 1, 1.0),
        ("float", "1.5e3", 1500.0),
        ("float", ".5", 0.5),
        ("bool", True, True),
        ("bool", "false", False),
        ("str", "5", "5"),
        ("str", "", ""),
        ("path", "/a b/ü", "/a b/ü"),
        ("list", ["a", ""], ["a", ""]),
        ("list", "a", ["a"]),
    ],
)
def test_a_value_is_typed(kind: Type, given_value: Any, value: Any) -> None:
    found = check_params(definition("x", p=Param(kind)), {"p": given_value})["p"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("int", "five", "must be a whole number, not 'five'"),
        ("int", 2.0, "must be a whole number, not 2.0"),
        ("int", True, "must be a whole number, not True"),
        ("int", "1_000", "must be a whole number"),
        ("int", "٣", "must be a whole number"),
        ("int", 2**63, "must be a whole number"),
        ("int", "9" * 10_000, "must be a whole number"),
        ("float", "nan", "must be a number, not 'nan'"),
        ("float", float("inf"), "must be a number, not inf"),
        ("float", "1e999", "must be a number"),
        ("bool", "yes", "must be true or false, not 'yes'"),
        ("bool", 1, "must be true or false, not 1"),
        ("str", 5, "must be a text, not 5"),
        ("str", "a\0b", "has a NUL character"),
        ("str", "\ud800", "is not valid Unicode"),
        ("str", "a" * 131072, "has 131,072 bytes, an argument can have 131,071"),
        ("path", "", "must be a path, not ''"),
        ("path", "-rf", "must be a path, not '-rf'; a name that begins with - is written ./-"),
        ("list", [1], "must be a list of texts, not a list"),
        ("list", {"a": 1}, "must be a list of texts, not a mapping"),
        ("list", ["a", "\0"], "entry 2 has a NUL character"),
        ("list", [""] * (LIST_ENTRIES_MAX + 1), "has 10,001 entries, 10,000 are allowed"),
        ("str", None, "must be a text, not None"),
    ],
)
def test_a_wrong_value_says_what_it_must_be(kind: Type, value: Any, says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        check_params(definition("x", p=Param(kind)), {"p": value})
    assert says in str(caught.value)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize(
    ("param", "good", "bad", "says"),
    [
        (Param("int", min=1, max=9), [1, 9], [0, 10], "must be a whole number from 1 to 9"),
        (Param("float", min=0.5), [0.5, 1], [0.25], "must be a number of at least 0.5"),
        (Param("int", max=3), [3, -5], [4], "must be a whole number of at most 3"),
        (Param("list", min=1, max=2), [["a"], ["a", "b"]], [[], ["a"] * 3], "must be a list of texts from 1 to 2 entries"),
    ],
)  # fmt: skip
def test_bounds(param: Param, good: list[Any], bad: list[Any], says: str) -> None:
    for value in good:
        check_params(definition("x", p=param), {"p": value})
    for value in bad:
        with pytest.raises(ParamsError, match=says):
            check_params(definition("x", p=param), {"p": value})


def test_all_faults_are_told_at_once_and_defaults_fill_in() -> None:
    whole = definition("x", first=Param("int"), last=Param("int", default=7), scene=Param("path"))
    with pytest.raises(ParamsError) as caught:
        check_params(whole, {"frist": 1, "scene": 3, "zzz": 1})
    assert caught.value.faults == [
        "'frist' is unknown, did you mean 'first'?",
        "'zzz' is unknown; there are first, last, scene",
        "'first' is missing; it is a whole number",
        "'scene' must be a path, not 3",
    ]
    assert check_params(whole, {"scene": "a", "first": "2"}) == {"first": 2, "last": 7, "scene": "a"}
    with pytest.raises(ParamsError, match="'a' is unknown; it has no params"):
        check_params(definition("x"), {"a": 1})


def test_params_together_are_bounded() -> None:
    whole = definition("x", p=Param("list"))
    with pytest.raises(ParamsError, match="together they have"):
        check_params(whole, {"p": ["a" * 100_000] * 6})


def test_what_was_checked_stays_as_it_is() -> None:
    whole = definition("x", a=Param("float"), b=Param("bool"), c=Param("list"))
    once = check_params(whole, {"a": "3", "b": "true", "c": "x"})
    assert check_params(whole, once) == once


# ---- arguments ----


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("{a}", [Place("a")]),
        ("+I{a}{b}.x", ["+I", Place("a"), Place("b"), ".x"]),
        ("{{a}}", ["{a}"]),
        ("{{{a}}}", ["{", Place("a"), "}"]),
        ("{{{{", ["{{"]),
    ],
)
def test_an_argument_is_split_at_its_placeholders(argument: str, parts: list[str | Place]) -> None:
    assert split_argument(argument) == parts


@pytest.mark.parametrize("argument", ["{", "}", "a{", "{}", "{a", "a}", "{a-b}", "{1}", "{{}", "{ a }"])
def test_a_lone_brace_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=r"has a lone [{}] at character \d+; a brace itself is written"):
        split_argument(argument)


def test_params_items_and_lists_become_arguments() -> None:
    whole = definition(
        "prog", "+I{s}", "{n}/{f}", "{b}", "{l}", "{item}{item}", "{index}", "{{{item}}}", "",
        s=Param("str"), n=Param("int"), f=Param("float"), b=Param("bool"), l=Param("list"),
    )  # fmt: skip
    params = {"s": "a b", "n": 3, "f": 0.5, "b": False, "l": ["x", "{item}", ""]}
    assert substitute(whole, params, "I", 7) == [
        "prog", "+Ia b", "3/0.5", "false", "x", "{item}", "", "II", "7", "{I}", ""
    ]  # fmt: skip
    assert uses_item(whole, params)


def test_what_a_submitter_gives_is_never_looked_into() -> None:
    whole = definition("prog", "{s}", "{item}", s=Param("str"))
    assert substitute(whole, {"s": "{item}{{"}, "{s}{index}", 0) == ["prog", "{item}{{", "{s}{index}"]
    assert not uses_item(definition("prog", "{l}", l=Param("list")), {"l": ["{item}"]})


def test_the_entries_of_an_expanding_list_are_arguments_themselves() -> None:
    params = check_params(SHELL, {"argv": ["awk", "{{print}}", "{item}-{index}"]})
    assert substitute(SHELL, params, "{index}", 3) == ["awk", "{print}", "{index}-3"]
    with pytest.raises(ParamsError, match=r"entry 2 has \{argv\}, but only \{item\} and \{index\} are known here"):
        check_params(SHELL, {"argv": ["a", "{argv}"]})
    with pytest.raises(ParamsError, match=r"entry 1 has a lone \{"):
        check_params(SHELL, {"argv": ["{"]})
    with pytest.raises(ParamsError, match="must be a list of texts of at least 1 entry, not of 0"):
        check_params(SHELL, {"argv": []})


@pytest.mark.parametrize(
    ("argv", "has_items", "ran"),
    [
        (["factor", "{}"], True, ["factor", "12"]),
        (["factor"], True, ["factor", "12"]),
        (["date"], False, ["date"]),
        (["awk", "{print $1}", "{}.log"], True, ["awk", "{print $1}", "12.log"]),
        (["echo", "{}{}", "{{}}", "{a}"], True, ["echo", "1212", "{12}", "{a}"]),
        (["echo", "{"], True, ["echo", "{", "12"]),
    ],
)
def test_dctl_run_means_what_gnu_parallel_means(argv: list[str], has_items: bool, ran: list[str]) -> None:
    params = check_params(SHELL, {"argv": run_template(argv, has_items)})
    assert substitute(SHELL, params, "12", 0) == ran


def test_one_jobs_arguments_serve_many_tasks() -> None:
    arguments = Arguments(definition("p", "{item}", "{index}"), {})
    assert [arguments.argv(text, i) for i, text in enumerate("ab")] == [["p", "a", "0"], ["p", "b", "1"]]
    assert arguments.uses_item
    assert arguments.uses_index


def test_a_command_that_uses_the_item_needs_one() -> None:
    with pytest.raises(ItemError, match=r"uses \{item\}, but the job has no input") as caught:
        substitute(definition("p", "{item}"), {}, None, 0)
    assert caught.value.code == "empty"
    assert substitute(definition("p", "{index}"), {}, None, 4) == ["p", "4"]


@given(st.text(), st.text())
def test_an_escaped_text_means_itself(text: str, item: str) -> None:
    whole = definition("p", escape_argument(text) + "{item}")
    assert substitute(whole, {}, item, 0) == ["p", text + item]


@given(st.text(alphabet="{}ab_1", max_size=12))
def test_any_argument_is_split_or_refused(argument: str) -> None:
    try:
        parts = split_argument(argument)
    except ValueError:
        return
    back = "".join(escape_argument(part) if isinstance(part, str) else f"{{{part.name}}}" for part in parts)
    assert back == argument


# ---- items ----

BLOB = Blob(bytes(32), 100_000)


@pytest.mark.parametrize(
    ("argv", "item", "code", "says"),
    [
        (["p", "{item}"], b"\xff", "bad_request", "item 4: byte 1 of it is not UTF-8"),
        (["p", "{item}"], b"a\0", "bad_request", "item 4: it has a NUL character"),
        (["p", "{item}"], b"a" * 131072, "too_large", "item 4: it has 131,072 bytes, but an argument"),
        (["p", "ab{item}"], b"a" * (ARGUMENT_BYTES_MAX - 1), "too_large", "where 131,069 are allowed"),
        (["p", "{item},{item}"], b"a" * 70_000, "too_large", "where 65,535 are allowed"),
        (["p", "{item}"], Blob(bytes(32), 131_072), "too_large", "it has 131,072 bytes"),
        (["p", "{item}"], File("a\0", b""), "bad_request", "NUL"),
        (["p"], b"x" * 11, "too_large", "it has 11 bytes, the definition's limits.data is 10"),
        (["p"], BLOB, "too_large", "it has 100,000 bytes, the definition's limits.data is 10"),
        (["p"], File("a", b"x" * 11), "too_large", "limits.data"),
    ],
)
def test_an_item_that_cannot_be_a_task_is_refused(argv: list[str], item: Item, code: str, says: str) -> None:
    limits = Limits(data_bytes=10) if "{item}" not in "".join(argv) else Limits()
    with pytest.raises(ItemError) as caught:
        check_item(replace(definition(*argv), limits=limits), {}, item, 4)
    assert says in str(caught.value)
    assert caught.value.code == code


def test_an_item_that_no_argument_uses_may_be_anything() -> None:
    rules = ItemRules(definition("p", "{index}"), {})
    for item in (b"\xff\0\n", b"a" * 200_000, BLOB, File("\udc80", b"")):
        rules.check(item, 0)
    rules.check(None, 0)
    rules.check_input(False)


def test_items_that_fit_exactly_are_taken() -> None:
    longest = b"a" * (ARGUMENT_BYTES_MAX - 2)
    whole = definition("p", "ab{item}")
    check_item(whole, {}, longest)
    assert len(substitute(whole, {}, longest.decode(), 0)[1]) == ARGUMENT_BYTES_MAX
    check_item(definition("p", "{item}"), {}, BLOB)
    check_item(definition("p", "{item}"), {}, File("./-a ü", b"\0"))


def test_an_item_of_lines_is_one_line() -> None:
    lines = Definition("d", "", "", "stream", ["p"], format="lines")
    with pytest.raises(ItemError, match="item 2: it has a newline"):
        check_item(lines, {}, b"a\nb", 2)
    check_item(lines, {}, b"a\rb\0\xff")
    check_item(replace(lines, format="json"), {}, b"a\nb")


def test_the_text_of_an_item() -> None:
    assert item_text("é".encode()) == "é"
    assert item_text(File("a/b", b"\xff")) == "a/b"
    with pytest.raises(ItemError, match="too many for an argument"):
        item_text(BLOB)


def test_a_job_without_input_is_told_before_any_task() -> None:
    with pytest.raises(ItemError, match="the job has no input"):
        ItemRules(SHELL, {"argv": ["p", "{item}"]}).check_input(False)
    ItemRules(SHELL, {"argv": ["p", "{item}"]}).check_input(True)
