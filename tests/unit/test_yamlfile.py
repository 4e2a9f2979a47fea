"""Strict YAML: what is read and how, what is refused and where, and that nothing else can happen."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from districomp import yamltree
from districomp.units import parse_size
from districomp.yamlfile import Document, Problem, YamlError, load, render_problems


@pytest.fixture(params=["CBaseLoader", "BaseLoader"], autouse=True)
def _each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with and without libyaml must say the same."""
    monkeypatch.setattr(yamltree, "_Loader", getattr(yaml, request.param))


class Inner(msgspec.Struct):
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    size: Annotated[int, msgspec.Meta(extra={"parse": parse_size, "what": "a size"})] = 0


class Outer(msgspec.Struct):
    name: str
    words: list[str] = []
    flags: dict[str, bool] = {}
    inner: Inner = msgspec.field(default_factory=Inner)
    ratio: float = 0.0
    mode: Literal["auto"] | bool = "auto"
    path: Path = Path()
    lease_s: int | None = msgspec.field(name="lease", default=None)
    anything: Any = None


def read(text: str) -> Outer:
    return load(text.encode(), "f.yaml", Outer)


def problems(data: bytes | str) -> list[str]:
    with pytest.raises(YamlError) as caught:
        load(data if isinstance(data, bytes) else data.encode(), "f.yaml", Outer)
    assert caught.value.problems
    return [str(problem) for problem in caught.value.problems]


def test_a_whole_file() -> None:
    outer = read(
        "name: no\nwords: [yes, 'off', \"1\", ~a]\nflags: {a: true, b: FALSE}\n"
        "inner:\n  count: 0x7\n  size: 4KiB\nratio: 1\nmode: false\npath: /a b\nlease: 0o17\n"
        "anything: [1, 2.5, null, on, {x: .5}]\n"
    )
    assert outer == Outer(
        name="no",
        words=["yes", "off", "1", "~a"],
        flags={"a": True, "b": False},
        inner=Inner(7, 4096),
        ratio=1.0,
        mode=False,
        path=Path("/a b"),
        lease_s=15,
        anything=[1, 2.5, None, "on", {"x": 0.5}],
    )
    assert isinstance(outer.ratio, float)


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("", None), ("~", None), ("null", None), ("NULL", None), ("nUll", "nUll"),
        ("true", True), ("True", True), ("yes", "yes"), ("on", "on"), ("y", "y"), ("No", "No"),
        ("0", 0), ("-12", -12), ("+3", 3), ("0o10", 8), ("0xfF", 255), ("-0x1", "-0x1"), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2026-11-22", "2026-11-22"), ("<<", "<<"), ("=", "="),
        ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("-2.5E-1", -0.25), (".", "."), ("1e", "1e"), ("e5", "e5"),
        ("'5'", "5"), ('"true"', "true"), ("''", ""), ("0b1", "0b1"),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(scalar: str, value: object) -> None:
    class Any1(msgspec.Struct):
        x: Any = 99

    found = load(f"x: {scalar}\n".encode(), "f.yaml", Any1).x
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("words: []", "f.yaml:1:1: name: this key is missing; it is a text"),
        ("name: a\nwrods: []", "f.yaml:2:1: wrods: unknown key; did you mean 'words'?"),
        ("name: a\nqqq: 1", "f.yaml:2:1: qqq: unknown key; the keys here are name, words, flags, inner, ratio, mode, path, lease, anything"),
        ("name: a\nlease_s: 1", "f.yaml:2:1: lease_s: unknown key; did you mean 'lease'?"),
        ("name: a\ninner: {cuont: 1}", "f.yaml:2:9: inner.cuont: unknown key; did you mean 'count'?"),
        ("name: 5", "f.yaml:1:7: name: must be a text, not the number 5; if the text is meant, write it in quotes: '5'"),
        ("name: true", "f.yaml:1:7: name: must be a text, not true; if the text is meant, write it in quotes: 'true'"),
        ("name:", "f.yaml:1:6: name: must be a text, not nothing"),
        ("name: [a]", "f.yaml:1:7: name: must be a text, not a list"),
        ("name: a\nwords: b", "f.yaml:2:8: words: must be a list, not the text 'b'; write [b]"),
        ("name: a\nwords: b c --d=e", "f.yaml:2:8: words: must be a list, not the text 'b c --d=e'; write [b, c, --d=e]"),
        ("name: a\nwords: b {c}", "f.yaml:2:8: words: must be a list, not the text 'b {c}'"),
        ("name: a\nwords: [b, 0755]", "f.yaml:2:12: words[1]: 0755 is ambiguous: some readers take it for octal; write 755, 0o755 or '0755' in quotes"),
        ("name: a\nflags: {x: yes}", "f.yaml:2:12: flags.x: must be true or false, not the text 'yes'"),
        ("name: a\ninner: {count: 10}", "f.yaml:2:16: inner.count: must be a whole number from 1 to 9, not the number 10"),
        ("name: a\ninner: {count: 1.0}", "f.yaml:2:16: inner.count: must be a whole number from 1 to 9, not the number 1.0"),
        ("name: a\ninner: {count: true}", "f.yaml:2:16: inner.count: must be a whole number from 1 to 9, not true"),
        ("name: a\ninner: {size: 4}", "f.yaml:2:15: inner.size: '4' has no unit; write for example 4MB or 4MiB"),
        ("name: a\ninner: {size: [4]}", "f.yaml:2:15: inner.size: must be a size, not a list"),
        ("name: a\ninner: 5", "f.yaml:2:8: inner: must be a mapping (KEY: VALUE), not the number 5"),
        ("name: a\nmode: aut", "f.yaml:2:7: mode: must be one of auto or true or false, not the text 'aut'"),
        ("name: a\nratio: .inf", "f.yaml:2:8: ratio: .inf is not a finite number"),
        ("name: a\nratio: 1e999", "f.yaml:2:8: ratio: must be a number, not the number 1e999"),
        ("name: a\nlease: " + "9" * 41, "f.yaml:2:8: lease: " + "9" * 37 + "... is too long for a number; a text is written in quotes"),
        ("- a", "f.yaml:1:1: must be a mapping (KEY: VALUE), not a list"),
        ("a", "f.yaml:1:1: must be a mapping (KEY: VALUE), not the text 'a'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place(text: str, expected: str) -> None:
    assert expected in problems(text)


@pytest.mark.parametrize(
    ("data", "place", "says"),
    [
        (b"a: &x 1", "f.yaml:1:4: ", "anchors (&x) are not allowed"),
        (b"a: 1\nb: *x", "f.yaml:2:4: ", "aliases (*x) are not allowed"),
        (b"a: !!str 1", "f.yaml:1:4: ", "tags (tag:yaml.org,2002:str) are not allowed"),
        (b"a: !x {}", "f.yaml:1:4: ", "tags (!x) are not allowed"),
        (b"a: 1\nb: 2\na: 3", "f.yaml:3:1: a: ", "this key is here twice; the first is in line 1"),
        (b"1: a", "f.yaml:1:1: ", "a key must be a text, not the number 1"),
        (b"true: a", "f.yaml:1:1: ", "a key must be a text, not true"),
        (b"? [a]\n: b", "f.yaml:1:3: ", "a key must be a text, not a list"),
        (b"a: 1\n---\nb: 2", "f.yaml:2:1: ", "a second document starts here"),
        (b"\xef\xbb\xbfname: a", "f.yaml: ", "byte order mark"),
        (b"\xff\xfen\x00", "f.yaml: ", "UTF-16"),
        (b"name: a\nb: caf\xe9", "f.yaml:2:7: ", "byte 0xE9 is not UTF-8 (Latin-1, perhaps)"),
        (b"a:\n\tb: 1", "f.yaml:2:1: ", "a tab stands here; YAML is indented with spaces alone"),
        (b"a:\n  b: 1\n \tc: 1", "f.yaml:3:", "a tab stands here"),
        (b"a: \x07", "f.yaml:1:4: ", "U+0007"),
        ("a: x\u2028y".encode(), "f.yaml:1:5: ", "U+2028"),
        (b"a: b\rc: d", "f.yaml:1:5: ", "U+000D"),
        (b"a: 'b", "f.yaml:1:6: ", "while scanning a quoted scalar"),
        (b"a: b: c", "f.yaml:1:5: ", "mapping values are not allowed"),
        (b"a: [1, 2\n\n", "f.yaml:1:9: ", "while parsing a flow sequence"),
        (b"a: " + b"[" * 100_000, "f.yaml:1:35: ", "nested deeper than 32 levels"),
        (b"a: " + b"x" * 256 * 1024, "f.yaml: ", "the file has 262,147 bytes; 262,144 are allowed"),
    ],
)  # fmt: skip
def test_what_is_no_strict_yaml_is_refused_at_its_place(data: bytes, place: str, says: str) -> None:
    found = problems(data)
    assert any(text.startswith(place) and says in text for text in found), found


def test_a_billion_laughs_are_refused_unread() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    found = problems("\n".join(["a0: &a0 [lol]", *levels]))
    assert "anchors" in found[0]
    assert len(found) == 100


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    found = problems("name: 5\nwords: [a, 1, b, 2]\nflags: {a: 1, b: true, c: 2}\nnope: 1\n")
    assert [text.split(": ")[0] for text in found] == [
        "f.yaml:1:7", "f.yaml:2:12", "f.yaml:2:18", "f.yaml:3:12", "f.yaml:3:27", "f.yaml:4:1"
    ]  # fmt: skip


def test_a_problem_is_shown_with_its_line_and_a_caret() -> None:
    with pytest.raises(YamlError) as caught:
        load("name: a\nwords:\n  - '日本' \n  - 5\n".encode(), "f.yaml", Outer)
    assert str(caught.value).splitlines() == [
        "f.yaml:4:5: words[1]: must be a text, not the number 5; if the text is meant, write it in quotes: '5'",
        "      - 5",
        "        ^",
    ]


def test_the_caret_stands_below_wide_characters() -> None:
    problem = Problem("f.yaml", 1, 4, "", "wrong", "日本 x")
    assert problem.render().splitlines()[2] == "    " + " " * 5 + "^"


def test_a_long_line_is_shown_around_the_place() -> None:
    problem = Problem("f.yaml", 1, 5001, "", "wrong", "a" * 5000 + "B" + "c" * 5000)
    _, source, caret = problem.render().splitlines()
    assert len(source) <= 164
    assert source[caret.index("^")] == "B"


def test_many_problems_end_with_a_word_that_there_may_be_more() -> None:
    text = render_problems([Problem("f", 0, 0, "", "x")] * 100)
    assert text.endswith("(there may be more)")


def test_an_own_check_is_silent_where_there_is_a_problem_already() -> None:
    document = Document(b"name: a\nwords: [1]\nratio: 2", "f.yaml")
    outer = document.convert(Outer)
    assert outer is not None
    assert outer.words == [""]
    document.problem(("words",), "is empty")
    document.problem(("words", 0), "is empty")
    document.problem(("ratio",), "is too much")
    document.problem(("absent", "deeper"), "is missing")
    assert [str(problem) for problem in document.problems] == [
        "f.yaml:1:1: absent.deeper: is missing",
        "f.yaml:2:9: words[0]: must be a text, not the number 1; if the text is meant, write it in quotes: '1'",
        "f.yaml:3:8: ratio: is too much",
    ]


def test_a_warning_is_no_problem_and_has_its_place() -> None:
    document = Document(b"name: a\nratio: 2\nwords: [b]", "f.yaml")
    document.warn(("words", 0), "is odd")
    document.warn(("ratio",), "is much")
    assert document.convert(Outer) is not None
    assert document.problems == []
    assert [warning.render().splitlines() for warning in document.warnings] == [
        ["f.yaml:2:8: ratio: warning: is much", "    ratio: 2", "           ^"],
        ["f.yaml:3:9: words[0]: warning: is odd", "    words: [b]", "            ^"],
    ]


def test_line_ends_of_windows_and_comments_do_not_matter() -> None:
    assert read("# hello\r\nname: a # b\r\n---\r\n".replace("---\r\n", "")).name == "a"


def test_a_struct_may_refuse_its_fields() -> None:
    class Picky(msgspec.Struct):
        a: int = 0

        def __post_init__(self) -> None:
            if self.a == 3:
                raise ValueError("three is too many")

    with pytest.raises(YamlError, match=r"f.yaml:1:1: three is too many"):
        load(b"a: 3", "f.yaml", Picky)


yaml_like = st.lists(
    st.sampled_from(
        ["name: a\n", "words:", " [", "]", "{", "}", ": ", "- ", "\n", "  ", "\t", "&a ", "*a", "!x ", "'", '"', "|\n", ">-\n",
         "? ", "#", "%YAML 1.2\n", "---\n", "...\n", "0755", "1e999", "é", "\u2028", "\r", ",", "inner", "lease: 3\n", "~", "<<"]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@given(
    st.one_of(
        yaml_like.map(str.encode),
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda t: t.encode(errors="replace")),
    )
)
def test_any_bytes_are_a_struct_or_problems_with_places(data: bytes) -> None:
    try:
        assert isinstance(load(data, "f.yaml", Outer), Outer)
    except YamlError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.render()
            assert problem.text
            assert problem.column >= 0


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_json_is_yaml_and_means_the_same(value: object) -> None:
    """YAML 1.2 contains JSON; what JSON says is what must be read, whatever the text looks like."""

    class Any1(msgspec.Struct):
        x: Any = None

    text = msgspec.json.encode({"x": value})
    try:
        assert load(text, "f.yaml", Any1).x == value
    except YamlError as error:
        # Refused for a reason of our own, never misread.
        allowed = ("control or separator", "too long for a number", "is not YAML")
        assert all(any(word in problem.text for word in allowed) for problem in error.problems)
