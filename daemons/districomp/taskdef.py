"""Task definitions: how a kind of task runs, its version, its parameters and its arguments. Pure.

Owns the meaning of a checked definition: parameters given at submission, arguments made of them for
each task, and what an item must be for that. Does not read definitions from YAML (`taskfile`), does
not read files (the coordinator's catalog does) and does not run anything (the worker's runners do).
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from districomp.errors import UsageError
from districomp.model import Blob, File, Item, item_content, payload_size

ARGUMENT_BYTES_MAX: Final = 128 * 1024 - 1
"""Longest argument: Linux's MAX_ARG_STRLEN without the closing NUL."""
PARAMS_BYTES_MAX: Final = 512 * 1024
"""All params of a submission together: they travel in one message."""
LIST_ENTRIES_MAX: Final = 10_000
INT_MAX: Final = 2**63 - 1

# Narrower than Python's int() and float(), which take underscores, spaces, other digits and "infinity".
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class Param(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One typed parameter of a definition. Without a default it must be given at submission.

    `min` and `max` bound a number's value and a list's number of entries.

    `expand`, of a list: its entries are arguments written by the submitter, in which `{item}`, `{index}`,
    `{{` and `}}` mean what they mean in the definition's own. Otherwise a value is never looked into.
    """

    type: Literal["str", "int", "float", "bool", "path", "list"]
    min: float | None = None
    max: float | None = None
    default: Any = None
    expand: bool = False


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None means unlimited. Seconds and bytes."""

    time_s: float | None = None
    data_bytes: int | None = None
    result_bytes: int | None = None


class Retries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max` counts the retries after the first attempt; `never_on`: exit codes that are a verdict, not a mishap."""

    max: int = 3
    backoff_s: float = 1.0
    never_on: list[int] = []


class Requires(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker must have. `arch`: one of these (empty: any); `programs` and `labels`: all of these."""

    arch: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A definition, checked and complete: what the coordinator keeps and the worker runs.

    `digest` is the version: SHA-256 (hex) over everything else, the bundle's manifest included.
    `bundle` is the SHA-256 (hex) of the bundle's manifest blob, '' without one.
    """

    name: str
    digest: str
    description: str
    runner: Literal["command", "stream", "python"]
    argv: list[str]
    format: Literal["lines", "json"] = "lines"
    bundle: str = ""
    params: dict[str, Param] = {}
    env: dict[str, str] = {}
    limits: Limits = Limits()
    retries: Retries = Retries()
    rerun: Literal["lost", "never"] = "lost"
    isolation: list[str] = msgspec.field(default_factory=lambda: ["rlimit"])
    requires: Requires = Requires()


class BundleFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a bundle: path relative to it (with /), permission bits, size in bytes, SHA-256 in hex."""

    path: str
    mode: int
    size: int
    sha256: str


class ParamsError(UsageError):
    """The params of a submission do not fit its definition; the message lists every fault."""

    code = "bad_params"

    def __init__(self, definition: str, faults: list[str]) -> None:
        super().__init__(f"the definition {definition!r} does not take these params: " + "; ".join(faults))
        self.faults = faults


class ItemError(UsageError):
    """An item cannot be a task's of this definition; `code` is what a Refused message carries."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_definition(definition: Definition) -> bytes:
    """A definition in MessagePack, as messages and the journal carry it."""
    return msgspec.msgpack.encode(definition)


def decode_definition(body: bytes) -> Definition:
    """The inverse of `encode_definition`; msgspec.MsgspecError if it is not one."""
    return msgspec.msgpack.decode(body, type=Definition)


def with_digest(definition: Definition) -> Definition:
    """The definition with its version filled in; equal definitions have equal versions."""
    # Deterministic order: the order of a mapping's keys in the YAML file means nothing.
    body = msgspec.msgpack.encode(replace(definition, digest=""), order="deterministic")
    return replace(definition, digest=hashlib.sha256(body).hexdigest())


# ---- params ----


def check_params(definition: Definition, params: Mapping[str, Any]) -> dict[str, Any]:
    """The params as the definition types them, in its order, defaults filled in. ParamsError lists all faults.

    A text is read as the type that is wanted (`--param first=3`), one text for a list is a list of one;
    nothing else is converted. Checking what was checked changes nothing.
    """
    faults = [_surplus(str(name), definition.params) for name in params if name not in definition.params]
    values: dict[str, Any] = {}
    for name, param in definition.params.items():
        if name not in params:
            if param.default is None:
                faults.append(f"{name!r} is missing; it is {_describe(param)}")
            else:
                values[name] = param.default
            continue
        try:
            values[name] = check_value(param, params[name])
        except ValueError as error:
            faults.append(f"{name!r} {error}")
    size = sum(_value_bytes(value) for value in values.values())
    if size > PARAMS_BYTES_MAX:
        faults.append(
            f"together they have {size:,} bytes, {PARAMS_BYTES_MAX:,} are allowed; give large data as the item"
        )
    if faults:
        raise ParamsError(definition.name, faults)
    return values


def check_matrix(
    definition: Definition, params: Mapping[str, Any], matrix: Sequence[tuple[str, list[Any]]]
) -> tuple[dict[str, Any], list[tuple[str, list[Any]]]]:
    """The params without those that vary, and the matrix, both as the definition types them. ParamsError lists all faults."""
    faults: list[str] = []
    varying = dict(matrix)
    if len(varying) < len(matrix):
        faults.append("a name stands twice in the matrix")
    faults += [f"{name!r} is given as a param and in the matrix" for name in varying if name in params]
    faults += [f"{name!r} has no values in the matrix" for name, values in matrix if not values]
    if faults:
        raise ParamsError(definition.name, faults)
    fixed = check_params(definition, dict(params) | {name: values[0] for name, values in matrix})
    checked: list[tuple[str, list[Any]]] = []
    for name, values in matrix:
        entries: list[Any] = []
        for value in values:
            try:
                entries.append(check_value(definition.params[name], value))
            except ValueError as error:
                faults.append(f"{name!r} {error}")
        checked.append((name, entries))
    if faults:
        raise ParamsError(definition.name, faults)
    return {name: value for name, value in fixed.items() if name not in varying}, checked


def matrix_params(matrix: Sequence[tuple[str, list[Any]]], index: int) -> dict[str, Any]:
    """The params of a matrix' `index`-th combination; the last name varies fastest."""
    chosen: dict[str, Any] = {}
    for name, values in reversed(matrix):
        index, place = divmod(index, len(values))
        chosen[name] = values[place]
    return chosen


def check_value(param: Param, value: Any) -> Any:
    """One value as `param` types it. ValueError says what it must be."""
    match param.type:
        case "int" | "float":
            return _number(param, value)
        case "bool":
            if isinstance(value, bool):
                return value
            if value in ("true", "false"):
                return value == "true"
        case "list":
            entries = [value] if isinstance(value, str) else value
            if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
                return _list(param, entries)
        case "str" | "path":
            if isinstance(value, str):
                _check_text(value)
                if param.type == "path" and (not value or value.startswith("-")):
                    # A path that begins with - would be read as an option by the program.
                    raise ValueError(f"must be a path, not {_show(value)}; a name that begins with - is written ./-")
                return value
    raise ValueError(f"must be {_describe(param)}, not {_show(value)}")


def _number(param: Param, value: Any) -> int | float:
    number: int | float | None = None
    if isinstance(value, str) and len(value) <= 40 and _NUMBER.fullmatch(value):
        try:
            number = int(value) if param.type == "int" else float(value)
        except ValueError:
            number = None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # An int is a float too, but never the other way: 2.0 for a count is a mistake worth hearing of.
        number = value if param.type == "float" or isinstance(value, int) else None
    good = number is not None and abs(number) <= INT_MAX if param.type == "int" else True
    if number is None or not good or not math.isfinite(number):
        raise ValueError(f"must be {_describe(param)}, not {_show(value)}")
    if (param.min is not None and number < param.min) or (param.max is not None and number > param.max):
        raise ValueError(f"must be {_describe(param)}, not {number}")
    return int(number) if param.type == "int" else float(number)


def _list(param: Param, entries: list[str]) -> list[str]:
    if len(entries) > LIST_ENTRIES_MAX:
        raise ValueError(f"has {len(entries):,} entries, {LIST_ENTRIES_MAX:,} are allowed")
    if len(entries) < (param.min or 0) or (param.max is not None and len(entries) > param.max):
        raise ValueError(f"must be {_describe(param)}, not of {len(entries)}")
    for position, entry in enumerate(entries):
        try:
            _check_text(entry)
            if param.expand:
                unknown = [part.name for part in split_argument(entry) if isinstance(part, Place) and not part.is_task]
                if unknown:
                    raise ValueError(f"has {{{unknown[0]}}}, but only {{item}} and {{index}} are known here")
        except ValueError as error:
            raise ValueError(f"entry {position + 1} {error}") from None
    return list(entries)


def _check_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode; it cannot be given to a program") from None
    if "\0" in text:
        raise ValueError("has a NUL character; no argument of a program can")
    if size > ARGUMENT_BYTES_MAX:
        raise ValueError(
            f"has {size:,} bytes, an argument can have {ARGUMENT_BYTES_MAX:,}; give it as the item instead"
        )


def _surplus(name: str, known: Mapping[str, Param]) -> str:
    close = get_close_matches(name[:64], list(known), 1)
    if close:
        return f"{name[:64]!r} is unknown, did you mean {close[0]!r}?"
    return f"{name[:64]!r} is unknown; " + (f"there are {', '.join(known)}" if known else "it has no params")


def _describe(param: Param) -> str:
    nouns = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "path": "a path"}
    noun = nouns.get(param.type, "a list of texts")
    unit = "" if param.type != "list" else " entry" if param.min == 1 and param.max is None else " entries"
    if param.min is not None and param.max is not None:
        return f"{noun} from {param.min:.15g} to {param.max:.15g}{unit}"
    if param.min is not None:
        return f"{noun} of at least {param.min:.15g}{unit}"
    return f"{noun} of at most {param.max:.15g}{unit}" if param.max is not None else noun


def _show(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _value_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(_value_bytes(entry) + 5 for entry in value)
    return len(value.encode()) if isinstance(value, str) else 9


# ---- arguments ----

_PART: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


_TASK_PLACES: Final = ("item", "index")


class Place(msgspec.Struct, frozen=True):
    """A placeholder of an argument: `{name}`."""

    name: str

    @property
    def is_task(self) -> bool:
        """It differs from task to task, rather than from job to job."""
        return self.name in _TASK_PLACES


def split_argument(argument: str) -> list[str | Place]:
    """An argument as texts and placeholders, `{{` and `}}` already braces. ValueError names a stray brace."""
    parts: list[str | Place] = []
    text, position = "", 0
    for match in _PART.finditer(argument):
        text += argument[position : match.start()]
        position = match.end()
        if match.group() in ("{{", "}}"):
            text += match.group()[0]
        elif name := match.group(1):
            parts += [text, Place(name)] if text else [Place(name)]
            text = ""
        else:
            brace = match.group()
            raise ValueError(
                f"has a lone {brace} at character {match.start() + 1}; a brace itself is written {brace * 2}"
            )
    text += argument[position:]
    return [*parts, text] if text or not parts else parts


def escape_argument(text: str) -> str:
    """The text such that, as an argument with placeholders, it means itself."""
    return text.replace("{", "{{").replace("}", "}}")


def run_template(argv: Sequence[str], has_items: bool) -> list[str]:
    """The arguments of `dctl run` as the param `argv` of `shell`: `{}` is the item, all else is itself.

    With items and no `{}` anywhere, the item is appended, as GNU parallel does.
    """
    template = ["{item}".join(escape_argument(piece) for piece in argument.split("{}")) for argument in argv]
    if has_items and not any("{}" in argument for argument in argv):
        template.append("{item}")
    return template


class Arguments:
    """A definition's arguments with one job's params in place; only `{item}` and `{index}` are left to fill in.

    Made once a job; `argv` costs about a microsecond. Values are put in side by side and never looked
    into again: an item or a param that contains `{item}` stays as it is.
    """

    __slots__ = ("_fixed", "_varying", "item_bytes_max", "uses_index", "uses_item")

    def __init__(self, definition: Definition, params: Mapping[str, Any]) -> None:
        self._fixed: list[str] = []
        # Position and parts of each argument that differs by task; 0 stands for the item, 1 for the index.
        self._varying: list[tuple[int, list[str | int]]] = []
        self.uses_item = self.uses_index = False
        self.item_bytes_max = ARGUMENT_BYTES_MAX
        """Longest text of an item with which every argument stays within the system's limit."""
        for argument in definition.argv:
            parts = split_argument(argument)
            first = parts[0]
            param = definition.params.get(first.name) if isinstance(first, Place) else None
            if isinstance(first, Place) and param is not None and param.type == "list":
                for entry in params[first.name]:
                    self._append(split_argument(entry) if param.expand else [entry])
            else:
                self._append([_filled(part, params) for part in parts])

    def _append(self, parts: list[str | Place]) -> None:
        if not any(isinstance(part, Place) for part in parts):
            self._fixed.append("".join(str(part) for part in parts))
            return
        codes = [part if isinstance(part, str) else _TASK_PLACES.index(part.name) for part in parts]
        self._varying.append((len(self._fixed), codes))
        self._fixed.append("")
        items = codes.count(0)
        self.uses_item = self.uses_item or items > 0
        self.uses_index = self.uses_index or 1 in codes
        if items:
            # An index has at most 20 digits.
            fixed_bytes = sum(len(part.encode()) if isinstance(part, str) else 20 * part for part in codes)
            self.item_bytes_max = min(self.item_bytes_max, max(0, ARGUMENT_BYTES_MAX - fixed_bytes) // items)

    def argv(self, item_text: str | None, index: int) -> list[str]:
        """One task's arguments. ItemError if an argument uses the item and there is none."""
        argv = self._fixed.copy()
        if self.uses_item and item_text is None:
            raise ItemError("empty", "the definition's command uses {item}, but the job has no input")
        texts = (item_text or "", str(index))
        for position, parts in self._varying:
            argv[position] = "".join([part if isinstance(part, str) else texts[part] for part in parts])
        return argv


def substitute(definition: Definition, params: Mapping[str, Any], item_text: str | None, index: int) -> list[str]:
    """One task's arguments, once; who needs them for many tasks keeps an `Arguments`."""
    return Arguments(definition, params).argv(item_text, index)


def uses_item(definition: Definition, params: Mapping[str, Any]) -> bool:
    """Whether an argument contains `{item}`, so that items must be short texts."""
    return Arguments(definition, params).uses_item


def _filled(part: str | Place, params: Mapping[str, Any]) -> str | Place:
    if isinstance(part, str) or part.is_task:
        return part
    value = params[part.name]
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# ---- items ----


def item_text(item: Item) -> str:
    """The text of `{item}`: of data or a line its content, of a file its path. ItemError if it is none.

    A Blob's content is not here: who has fetched it passes the bytes.
    """
    if isinstance(item, Blob):
        raise ItemError("too_large", f"it has {item.size:,} bytes, too many for an argument")
    if isinstance(item, File):
        text = item.path
    else:
        try:
            text = item.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ItemError(
                "bad_request",
                f"byte {error.start + 1} of it is not UTF-8, and an argument of the command uses {{item}}",
            ) from None
    if "\0" in text:
        raise ItemError("bad_request", "it has a NUL character, and an argument of the command uses {item}")
    return text


class ItemRules:
    """What an item must be for a definition and params. Made once a job; most jobs' `check` compares one size.

    Of a Blob only the size is checked here: its content is checked by who reads it first.
    """

    __slots__ = ("_arguments", "_data_bytes_max", "_no_newline")

    def __init__(self, definition: Definition, params: Mapping[str, Any]) -> None:
        self._arguments = Arguments(definition, params)
        self._data_bytes_max = definition.limits.data_bytes
        self._no_newline = definition.runner == "stream" and definition.format == "lines"

    def check(self, item: Item | None, index: int) -> None:
        """ItemError says what is wrong with the item of this index; None: the job has no input."""
        try:
            self._check(item)
        except ItemError as error:
            raise ItemError(error.code, f"item {index}: {error}") from None

    def check_input(self, has_items: bool) -> None:
        """ItemError if the command needs an item and the job has no input at all."""
        if not has_items and self._arguments.uses_item:
            raise ItemError("empty", "the definition's command uses {item}, but the job has no input")

    def _check(self, item: Item | None) -> None:
        if item is None:
            self.check_input(False)
            return
        content = item_content(item)
        size = payload_size(content)
        if self._data_bytes_max is not None and size > self._data_bytes_max:
            raise ItemError(
                "too_large", f"it has {size:,} bytes, the definition's limits.data is {self._data_bytes_max:,}"
            )
        if self._no_newline and isinstance(content, bytes) and b"\n" in content:
            raise ItemError(
                "bad_request", "it has a newline, and the definition's stream takes one line an item (format: lines)"
            )
        if not self._arguments.uses_item:
            return
        if isinstance(item, File):
            size = len(item.path.encode("utf-8", "surrogatepass"))
        if size > self._arguments.item_bytes_max:
            limit = self._arguments.item_bytes_max
            raise ItemError(
                "too_large",
                f"it has {size:,} bytes, but an argument of the command uses {{item}}, where {limit:,} are allowed; let the program read it from standard input",
            )
        if not isinstance(item, Blob):
            item_text(item)


def check_item(definition: Definition, params: Mapping[str, Any], item: Item | None, index: int = 0) -> None:
    """One item against a definition, once; who checks many keeps an `ItemRules`."""
    ItemRules(definition, params).check(item, index)
