"""Placeholders in arguments: how they are spelt, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.placeholders import Place, escape_argument, split_argument


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


@given(st.text(alphabet="{}ab_1", max_size=12))
def test_any_argument_is_split_or_refused(argument: str) -> None:
    try:
        parts = split_argument(argument)
    except ValueError:
        return
    back = "".join(escape_argument(part) if isinstance(part, str) else f"{{{part.name}}}" for part in parts)
    assert back == argument
