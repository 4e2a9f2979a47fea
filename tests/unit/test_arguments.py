"""A task's arguments, and what its item must be for them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from districomp.arguments import Arguments, ItemError, ItemRules, check_item, item_text, substitute, uses_item
from districomp.model import Blob, File, Item
from districomp.placeholders import ARGUMENT_BYTES_MAX, escape_argument, run_template
from districomp.taskdef import Definition, Limits, Param, ParamsError, check_params


def definition(*argv: str, **params: Param) -> Definition:
    return Definition("d", "", "", "command", list(argv), params=params)


SHELL = definition("{argv}", argv=Param("list", min=1, expand=True))


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


ITEMS = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"a\nb", b"\0", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"x" * 11]),
    st.sampled_from([BLOB, File("a", b"x"), File("\0", b"")]),
)


@given(
    st.lists(ITEMS, max_size=6),
    st.sampled_from(
        [
            definition("p"),
            definition("p", "{item}"),
            replace(definition("p"), limits=Limits(data_bytes=10)),
            Definition("d", "", "", "stream", ["p"], format="lines"),
            Definition("d", "", "", "stream", ["p"], format="json"),
        ]
    ),
)
def test_many_items_are_judged_as_each_of_them_would_be(items: list[Item], whose: Definition) -> None:
    rules = ItemRules(whose, {})

    def verdict(check: Callable[[], None]) -> str:
        try:
            check()
        except ItemError as error:
            return f"{error.code}: {error}"
        return "taken"

    def one_by_one() -> None:
        for index, item in enumerate(items, 7):
            rules.check(item, index)

    assert verdict(lambda: rules.check_all(items, 7)) == verdict(one_by_one)
