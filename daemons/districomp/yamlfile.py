"""Strict YAML text to checked Structs, with every problem of a file at once and where it stands. Pure.

YAML 1.2 core meaning (`no` is a text, `0755` is refused because it means 493 to some readers and 755
to others), without what makes YAML dangerous or surprising: no anchors, aliases, tags, duplicate
keys or second documents; 256 KiB, 32 levels. `yamltree` reads the text, this module gives it a type:

- the keys of a Struct are those of its fields (`msgspec.field(name=...)` renames), nothing else;
- `Annotated[T, Meta(extra={"parse": f, "what": "a size"})]` reads a scalar's text by `f` (ValueError: a problem).

Owns the walk and its messages; knows nothing of what the Structs mean, and opens no file.
"""

import math
import re
from collections.abc import Callable, Hashable, Iterable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from msgspec import inspect

from districomp.yamltree import (
    PROBLEMS_MAX,
    Node,
    Problem,
    YamlError,
    render_problems,
    resolve,
    show,
)
from districomp.yamltree import parse as parse_tree

__all__ = ["Document", "Problem", "YamlError", "load", "render_problems"]

T = TypeVar("T")
Key = tuple[str | int, ...]

_FAILED: Final = object()
_WORD: Final = re.compile(r"[A-Za-z_./+-][A-Za-z0-9_./+=-]{0,40}")


def load(data: bytes, file: str, cls: type[T]) -> T:
    """A file's bytes as a `cls` Struct; an empty file is one without keys. YamlError with all its problems."""
    document = Document(data, file)
    value = document.convert(cls)
    if value is None or document.problems:
        raise YamlError(document.problems)
    return value


class Document:
    """One file on its way to a Struct: collects the problems, knows where each key stands.

    For checks beyond types: `convert`, then `problem(key, text)` for what else is wrong, then `problems`.
    """

    def __init__(self, data: bytes, file: str) -> None:
        self.file = file
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._faulty: set[Key] = set()
        self._root: Node | None = None
        self._lines: list[str] = []
        try:
            self._root, self._lines = parse_tree(data, file)
        except YamlError as error:
            self._problems = list(error.problems)

    @property
    def problems(self) -> list[Problem]:
        """All problems found so far, in the order of the file."""
        return sorted(self._problems, key=_place)

    @property
    def warnings(self) -> list[Problem]:
        """All warnings given so far, in the order of the file; they are no problems."""
        return sorted(self._warnings, key=_place)

    def convert(self, cls: type[T]) -> T | None:
        """The document as a `cls`. None if the text is no YAML or a required key has no usable value.

        A key with a default that is wrong is reported and left at its default, so that the checks that
        follow still see the rest; the Struct may be used for real only if `problems` is empty.
        """
        if self._root is None:
            return None
        root = self._root
        if root.kind == "scalar" and root.plain and not root.text:
            root = Node("map", root.line, root.column)
        value = self._convert(root, _type_info(cast(Hashable, cls)), ())
        return None if value is _FAILED else value

    def has(self, key: Key) -> bool:
        """Whether the key stands in the file, whatever its value."""
        return self._root is not None and self._find(key) is not self._find(key[:-1])

    def problem(self, key: Key, text: str) -> None:
        """Report what is wrong with `key`, at its value if it is there, else at the nearest key above it.

        Silent when the key, or one above or below it, already has a problem: the first one is the cause.
        """
        if self._root is None or any(_related(key, other) for other in self._faulty):
            return
        self._add(self._find(key), key, text)

    def warn(self, key: Key, text: str) -> None:
        """Say of a key that is right what its author may not expect."""
        if self._root is not None and len(self._warnings) < PROBLEMS_MAX:
            self._warnings.append(self._at(self._find(key), key, f"warning: {text}"))

    def _find(self, key: Key) -> Node:
        assert self._root is not None
        node = self._root
        for step in key:
            if node.kind == "map" and step in node.children:
                node = node.children[str(step)][1]
            elif node.kind == "list" and isinstance(step, int) and step < len(node.entries):
                node = node.entries[step]
            else:
                break
        return node

    def _add(self, node: Node, key: Key, text: str) -> None:
        self._faulty.add(key)
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(self._at(node, key, text))

    def _at(self, node: Node, key: Key, text: str) -> Problem:
        source = self._lines[node.line] if node.line < len(self._lines) else ""
        return Problem(self.file, node.line + 1, node.column + 1, _key_text(key), text, source)

    # ---- the walk: a node and a type to a value, or _FAILED with the problem added ----

    def _convert(self, node: Node, kind: inspect.Type, key: Key) -> Any:
        if isinstance(kind, inspect.Metadata):
            if kind.extra and "parse" in kind.extra:
                return self._parsed(node, kind.extra["parse"], kind.extra["what"], key)
            return self._convert(node, kind.type, key)
        if isinstance(kind, inspect.UnionType):
            kind = _member_for(node, kind)
        if isinstance(kind, inspect.AnyType):
            return self._plain(node, key)
        if isinstance(kind, inspect.StructType) and node.kind == "map":
            return self._struct(node, kind, key)
        if isinstance(kind, inspect.DictType) and node.kind == "map":
            return self._dict(node, kind, key)
        if isinstance(kind, inspect.ListType) and node.kind == "list":
            return self._list(node, kind, key)
        if node.kind == "scalar" and not isinstance(kind, inspect.ListType):
            return self._scalar(node, kind, key)
        hint = _list_hint(node.text) if isinstance(kind, inspect.ListType) else ""
        self._add(node, key, f"must be {describe(kind)}, not {show(node)}{hint}")
        return _FAILED

    def _struct(self, node: Node, kind: inspect.StructType, key: Key) -> Any:
        fields = {field.encode_name: field for field in kind.fields}
        values: dict[str, Any] = {}
        for name, (name_node, value_node) in node.children.items():
            field = fields.get(name)
            if field is None:
                self._add(name_node, (*key, name), _unknown_key(name, fields))
                continue
            value = self._convert(value_node, field.type, (*key, name))
            if value is not _FAILED:
                values[field.name] = value
        complete = True
        for name, field in fields.items():
            if not field.required or field.name in values:
                continue
            complete = False
            if name not in node.children:
                self._add(node, (*key, name), f"this key is missing; it is {describe(field.type)}")
        if not complete:
            return _FAILED
        try:
            return kind.cls(**values)
        except ValueError as error:
            self._add(node, key, str(error))
            return _FAILED

    def _list(self, node: Node, kind: inspect.ListType, key: Key) -> Any:
        values = [self._convert(entry, kind.item_type, (*key, i)) for i, entry in enumerate(node.entries)]
        if isinstance(kind.item_type, inspect.StrType):
            # A stand-in for what is wrong keeps the others at their places, for the checks that follow.
            return ["" if value is _FAILED else value for value in values]
        return _FAILED if any(value is _FAILED for value in values) else values

    def _dict(self, node: Node, kind: inspect.DictType, key: Key) -> dict[str, Any]:
        pairs = [
            (name, self._convert(value, kind.value_type, (*key, name))) for name, (_, value) in node.children.items()
        ]
        return {name: value for name, value in pairs if value is not _FAILED}

    def _parsed(self, node: Node, parse: Callable[[str], Any], what: str, key: Key) -> Any:
        if node.kind != "scalar" or not node.text:
            self._add(node, key, f"must be {what}, not {show(node)}")
            return _FAILED
        try:
            return parse(node.text)
        except ValueError as error:
            self._add(node, key, str(error))
            return _FAILED

    def _plain(self, node: Node, key: Key) -> Any:
        if node.kind == "list":
            values = [self._plain(entry, (*key, i)) for i, entry in enumerate(node.entries)]
            return _FAILED if any(value is _FAILED for value in values) else values
        if node.kind == "map":
            pairs = {name: self._plain(value, (*key, name)) for name, (_, value) in node.children.items()}
            return _FAILED if any(value is _FAILED for value in pairs.values()) else pairs
        try:
            return resolve(node)
        except ValueError as error:
            self._add(node, key, str(error))
            return _FAILED

    def _scalar(self, node: Node, kind: inspect.Type, key: Key) -> Any:
        try:
            value = resolve(node)
        except ValueError as error:
            self._add(node, key, str(error))
            return _FAILED
        checked = _checked(value, kind)
        if checked is _FAILED:
            hint = ""
            if _accepts_text(kind) and not isinstance(value, str) and value is not None:
                hint = f"; if the text is meant, write it in quotes: '{node.text}'"
            elif isinstance(value, str) and isinstance(kind, inspect.LiteralType):
                hint = _did_you_mean(value, [str(choice) for choice in kind.values])
            self._add(node, key, f"must be {describe(kind)}, not {show(node)}{hint}")
        return checked


def _place(problem: Problem) -> tuple[int, int]:
    return problem.line, problem.column


@lru_cache(maxsize=256)
def _type_info(cls: Hashable) -> inspect.Type:
    return inspect.type_info(cls)


def _related(one: Key, other: Key) -> bool:
    shared = min(len(one), len(other))
    return shared > 0 and one[:shared] == other[:shared]


def _key_text(key: Key) -> str:
    text = ""
    for step in key:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name[:64], list(known), 1, 0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _unknown_key(name: str, known: Iterable[str]) -> str:
    hint = _did_you_mean(name, known)
    return f"unknown key{hint}" if hint else f"unknown key; the keys here are {', '.join(known)}"


def _list_hint(text: str) -> str:
    """How the words of a text are written as a list, if they can be without quotes."""
    words = text.split()
    return f"; write [{', '.join(words)}]" if 0 < len(words) <= 8 and all(map(_WORD.fullmatch, words)) else ""


def _member_for(node: Node, union: inspect.UnionType) -> inspect.Type:
    """The one member of a union that fits the node's shape; the union itself for a scalar."""
    shapes: dict[str, tuple[type, ...]] = {
        "map": (inspect.StructType, inspect.DictType),
        "list": (inspect.ListType,),
        "scalar": (),
    }
    for member in union.types:
        if isinstance(member, shapes[node.kind]):
            return member
    return union


def _accepts_text(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return any(_accepts_text(member) for member in kind.types)
    return isinstance(kind, inspect.StrType | inspect.CustomType)


def _checked(value: Any, kind: inspect.Type) -> Any:
    """A resolved scalar as `kind` wants it, or _FAILED. Never converts between text and anything else."""
    match kind:
        case inspect.UnionType():
            results = (_checked(value, member) for member in kind.types)
            return next((result for result in results if result is not _FAILED), _FAILED)
        case inspect.Metadata():
            return _checked(value, kind.type)
        case inspect.StrType():
            good = isinstance(value, str) and len(value) >= (kind.min_length or 0)
            good = good and (kind.max_length is None or len(value) <= kind.max_length)
        case inspect.BoolType():
            good = isinstance(value, bool)
        case inspect.IntType():
            good = isinstance(value, int) and not isinstance(value, bool) and _within(value, kind)
        case inspect.FloatType():
            good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            good = good and _within(value, kind)
            value = float(value) if good else value
        case inspect.LiteralType():
            good = any(value == choice and type(value) is type(choice) for choice in kind.values)
        case inspect.NoneType():
            good = value is None
        case inspect.CustomType(cls=cls) if cls is Path:
            good = isinstance(value, str) and bool(value)
            value = Path(value) if good else value
        case _:
            good = False
    return value if good else _FAILED


def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)


def describe(kind: inspect.Type) -> str:
    """A type as a person would say it: `a whole number from 1 to 64`."""
    match kind:
        case inspect.Metadata():
            return kind.extra["what"] if kind.extra and "what" in kind.extra else describe(kind.type)
        case inspect.UnionType():
            return " or ".join(describe(member) for member in kind.types)
        case inspect.IntType():
            return "a whole number" + _range_text(kind)
        case inspect.FloatType():
            return "a number" + _range_text(kind)
        case inspect.StrType():
            length = f" of at most {kind.max_length} characters" if kind.max_length is not None else ""
            return "a text" + length
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return "one of " + ", ".join(str(choice) for choice in kind.values)
        case inspect.ListType():
            return "a list"
        case inspect.StructType() | inspect.DictType():
            return "a mapping (KEY: VALUE)"
        case inspect.NoneType():
            return "empty"
        case inspect.CustomType():
            return "a path"
        case _:
            return "a value"


def _range_text(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    if kind.ge is not None:
        return f" of at least {kind.ge}"
    return f" of at most {kind.le}" if kind.le is not None else ""
