"""YAML text to a tree of nodes that know their place, or typed problems. Pure.

Owns the part of YAML that is read here (see `yamlfile`), the limits, the meaning of plain scalars and
the look of a problem. Works on PyYAML's events, never its objects: what is refused is refused before
anything is built from it, and nesting costs no recursion.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec
import yaml

from districomp.errors import ConfigError

FILE_BYTES_MAX: Final = 256 * 1024
DEPTH_MAX: Final = 32
PROBLEMS_MAX: Final = 100
_SOURCE_CHARS_MAX: Final = 160
_NUMBER_CHARS_MAX: Final = 40

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

# YAML 1.2 core schema, section 10.3.2 of the specification. Octal is 0o17; 017 is ambiguous and refused.
_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9]+")
# What no line of a text file holds, and the separators on which YAML 1.1 and 1.2 disagree.
_CONTROL: Final = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with a file. `line` and `column` count from 1 (0: the file as a whole); `source` is that line."""

    file: str
    line: int
    column: int
    key: str
    text: str
    source: str = ""

    def __str__(self) -> str:
        """The first line of `render`: `file:line:column: key: what is wrong`."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"

    def render(self) -> str:
        """Three lines: place and problem, the source line, a caret below the place."""
        if not self.line or not self.source.strip():
            return str(self)
        start = max(0, self.column - _SOURCE_CHARS_MAX // 2)
        shown = self.source[start : start + _SOURCE_CHARS_MAX].replace("\t", " ")
        before = shown[: self.column - 1 - start]
        # Wide characters take two cells of a terminal.
        indent = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in before)
        return f"{self}\n    {shown}\n    {' ' * indent}^"


class YamlError(ConfigError):
    """A file is wrong; the message is all its problems, rendered."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(render_problems(self.problems))


class Node:
    """A scalar (`text`; `plain`: unquoted), a list (`entries`) or a map (`children`: key -> its node, value). From 0."""

    __slots__ = ("children", "column", "entries", "kind", "line", "plain", "text")

    def __init__(
        self, kind: Literal["scalar", "list", "map"], line: int, column: int, text: str = "", plain: bool = False
    ) -> None:
        self.kind = kind
        self.line = line
        self.column = column
        self.text = text
        self.plain = plain
        self.entries: list[Node] = []
        self.children: dict[str, tuple[Node, Node]] = {}


def render_problems(problems: list[Problem]) -> str:
    """All problems as a person reads them."""
    text = "\n".join(problem.render() for problem in problems)
    return text if len(problems) < PROBLEMS_MAX else text + "\n(there may be more)"


def parse(data: bytes, file: str) -> tuple[Node, list[str]]:
    """The root node and the lines of a file's bytes; an empty text is an empty plain scalar. YamlError."""
    text = _decode(data, file)
    lines = text.split("\n")
    builder = _Builder(file, lines)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.event(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        while line > 0 and (line >= len(lines) or not lines[line]):
            # The end of the file is where its last text ends.
            line, column = line - 1, len(lines[min(line, len(lines)) - 1])
        builder.add(line, column, "", _syntax_text(error, lines, line, column))
    except yaml.YAMLError as error:
        builder.add(0, 0, "", f"is not YAML: {error}")
    if builder.problems:
        raise YamlError(builder.problems)
    return builder.root or Node("scalar", 0, 0, "", True), lines


def resolve(node: Node) -> Any:
    """A scalar's value by the YAML 1.2 core schema. ValueError for what is ambiguous, huge or not finite."""
    text = node.text
    if not node.plain:
        return text
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in "+-.0123456789":
        return text
    if _LEADING_ZERO.fullmatch(text):
        digits = text.lstrip("+-").lstrip("0") or "0"
        raise ValueError(
            f"{_shorten(text)} is ambiguous: some readers take it for octal; "
            f"write {_shorten(digits)}, 0o{_shorten(digits)} or '{_shorten(text)}' in quotes"
        )
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    is_int = _INT.fullmatch(text) is not None
    if not is_int and not _FLOAT.fullmatch(text):
        return text
    if len(text) > _NUMBER_CHARS_MAX:
        raise ValueError(f"{_shorten(text)} is too long for a number; a text is written in quotes")
    return int(text, 0) if is_int and text[:2] in ("0o", "0x") else int(text) if is_int else float(text)


def show(node: Node) -> str:
    """A node as a message names it: `the number 5`, `the text 'abc'`, `a list`."""
    if node.kind != "scalar":
        return "a list" if node.kind == "list" else "a mapping"
    try:
        value = resolve(node)
    except ValueError:
        return _shorten(node.text)
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {_shorten(value)!r}"
    return f"{node.text}" if isinstance(value, bool) else f"the number {node.text}"


class _Builder:
    """Events in, nodes out. A problem that leaves the shape intact is collected, any other ends the reading."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file = file
        self.lines = lines
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self._open: list[Node] = []
        self._keys: list[Node | None] = []
        self._documents = 0

    def add(self, line: int, column: int, key: str, text: str) -> None:
        source = self.lines[line] if line < len(self.lines) else ""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(self.file, line + 1, column + 1, key, text, source))

    def event(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self.add(self._node("scalar", event).line, 0, "", "a second document starts here; a file holds one")
                    raise YamlError(self.problems)
            case yaml.ScalarEvent():
                self._check_marked(event)
                plain = bool(event.implicit[0])
                self._place(self._node("scalar", event, event.value, plain))
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._check_marked(event)
                node = self._node("list" if isinstance(event, yaml.SequenceStartEvent) else "map", event)
                if len(self._open) >= DEPTH_MAX:
                    self.add(node.line, node.column, "", f"nested deeper than {DEPTH_MAX} levels")
                    raise YamlError(self.problems)
                self._place(node)
                self._open.append(node)
                self._keys.append(None)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._open.pop()
                self._keys.pop()
            case yaml.AliasEvent():
                node = self._node("scalar", event)
                self.add(node.line, node.column, "", f"aliases (*{event.anchor}) are not allowed; write the value out")
                self._place(node)
            case _:
                pass

    def _node(self, kind: Literal["scalar", "list", "map"], event: Any, text: str = "", plain: bool = True) -> Node:
        return Node(kind, event.start_mark.line, event.start_mark.column, text, plain)

    def _check_marked(self, event: Any) -> None:
        mark = event.start_mark
        if event.anchor is not None:
            self.add(mark.line, mark.column, "", f"anchors (&{event.anchor}) are not allowed; write the value out")
        if event.tag is not None:
            self.add(mark.line, mark.column, "", f"tags ({_shorten(event.tag)}) are not allowed; leave it out")

    def _place(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if parent.kind == "list":
            parent.entries.append(node)
        elif self._keys[-1] is None:
            self._keys[-1] = node
        else:
            self._pair(parent, self._keys[-1], node)
            self._keys[-1] = None

    def _pair(self, parent: Node, key: Node, value: Node) -> None:
        name = key.text
        if key.kind != "scalar" or not self._is_text(key):
            self.add(key.line, key.column, "", f"a key must be a text, not {show(key)}")
        elif name in parent.children:
            first = parent.children[name][0].line + 1
            self.add(key.line, key.column, _shorten(name), f"this key is here twice; the first is in line {first}")
        else:
            parent.children[name] = (key, value)

    def _is_text(self, key: Node) -> bool:
        try:
            return isinstance(resolve(key), str)
        except ValueError:
            return False


def _decode(data: bytes, file: str) -> str:
    def fail(text: str, offset: int = -1) -> YamlError:
        before = data[: max(offset, 0)].decode("utf-8", "replace").replace("\r\n", "\n")
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        source = "" if offset < 0 else data.splitlines()[line].decode("utf-8", "replace") if data.strip() else ""
        return YamlError([Problem(file, line + 1 if offset >= 0 else 0, column + 1, "", text, source)])

    if len(data) > FILE_BYTES_MAX:
        raise fail(f"the file has {len(data):,} bytes; {FILE_BYTES_MAX:,} are allowed")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise fail("the file is UTF-16; save it as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        raise fail("the file begins with a byte order mark; save it as UTF-8 without one (BOM)")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise fail(f"byte 0x{byte:02X} is not UTF-8 (Latin-1, perhaps); save the file as UTF-8", error.start) from None
    text = text.replace("\r\n", "\n")
    for match in _control_characters(text):
        line, column = text.count("\n", 0, match.start()), match.start() - text.rfind("\n", 0, match.start()) - 1
        what = f"the control or separator character U+{ord(match.group()):04X} is not allowed here"
        raise YamlError([Problem(file, line + 1, column + 1, "", what)])
    return text


def _control_characters(text: str) -> Iterator[re.Match[str]]:
    return _CONTROL.finditer(text)


def _syntax_text(error: yaml.MarkedYAMLError, lines: list[str], line: int, column: int) -> str:
    source = lines[line] if line < len(lines) else ""
    indent = source[: len(source) - len(source.lstrip())]
    if "\t" in indent or source[column : column + 1] == "\t":
        return "a tab stands here; YAML is indented with spaces alone"
    problem = (error.problem or "cannot be read").strip()
    context = f" {error.context}" if error.context else ""
    where = f" (from line {error.context_mark.line + 1})" if error.context and error.context_mark else ""
    return f"is not YAML: {problem}{context}{where}"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
