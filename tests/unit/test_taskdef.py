"""A checked definition's params and version."""

from typing import Any, Literal

import pytest
from msgspec.structs import replace

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
