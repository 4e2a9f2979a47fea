"""Task definitions: how a kind of task runs, its version and its parameters. Pure.

Owns the meaning of a checked definition and of the parameters given at submission. Does not make
arguments of them (`arguments`), does not read definitions from YAML (`taskfile`) or files (the
coordinator's catalog does) and does not run anything (the worker's runners do).
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
from districomp.placeholders import ARGUMENT_BYTES_MAX, Place, split_argument

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
    """None means unlimited. Seconds and bytes. `running`: tasks at once in the whole cluster."""

    time_s: float | None = None
    data_bytes: int | None = None
    result_bytes: int | None = None
    # Not enforced yet.
    memory_bytes: int | None = None
    cpus: int = 1
    gpus: int = 0
    processes: int | None = None
    disk_bytes: int | None = None
    running: int | None = None


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
    `argv` of the runner `python` is one text, `module:function`.
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
    network: bool = True
    # Not enforced yet.
    inputs: list[str] = []
    outputs: list[str] = []
    priority: int = 0


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


def encode_definition(definition: Definition) -> bytes:
    """A definition in MessagePack, as messages and the journal carry it."""
    return msgspec.msgpack.encode(definition)


def decode_definition(body: bytes) -> Definition:
    """The inverse of `encode_definition`; one of `wire.UNREADABLE` if it is not one."""
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
                faults.append(f"{name!r} is missing; it is {describe_param(param)}")
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
    raise ValueError(f"must be {describe_param(param)}, not {_show(value)}")


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
        raise ValueError(f"must be {describe_param(param)}, not {_show(value)}")
    if (param.min is not None and number < param.min) or (param.max is not None and number > param.max):
        raise ValueError(f"must be {describe_param(param)}, not {number}")
    return int(number) if param.type == "int" else float(number)


def _list(param: Param, entries: list[str]) -> list[str]:
    if len(entries) > LIST_ENTRIES_MAX:
        raise ValueError(f"has {len(entries):,} entries, {LIST_ENTRIES_MAX:,} are allowed")
    if len(entries) < (param.min or 0) or (param.max is not None and len(entries) > param.max):
        raise ValueError(f"must be {describe_param(param)}, not of {len(entries)}")
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


def describe_param(param: Param) -> str:
    """What a param's value must be, as a person would say it: `a whole number from 1 to 9`."""
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
