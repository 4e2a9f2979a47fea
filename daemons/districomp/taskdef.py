"""Task definitions: how a kind of task runs, and its limits. Pure: text in, structs or problems out.

Owns the meaning of a definition: its keys, parameters, substitution and version. Does not read files
(the coordinator's catalog does) and does not run anything (the worker's runners do).
"""

from typing import Any, Literal

import msgspec


class Param(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One typed parameter of a definition. Without a default it must be given at submission."""

    type: Literal["str", "int", "float", "bool", "path", "list"]
    min: float | None = None
    max: float | None = None
    default: Any = None


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


class BundleFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a bundle: path relative to it (with /), permission bits, size in bytes, SHA-256 in hex."""

    path: str
    mode: int
    size: int
    sha256: str


def encode_definition(definition: Definition) -> bytes:
    """A definition in MessagePack, as messages and the journal carry it."""
    return msgspec.msgpack.encode(definition)


def decode_definition(body: bytes) -> Definition:
    """The inverse of `encode_definition`; msgspec.MsgspecError if it is not one."""
    return msgspec.msgpack.decode(body, type=Definition)
