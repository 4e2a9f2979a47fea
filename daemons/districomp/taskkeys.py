"""The keys of a definition's file, with their types, bounds and defaults. Pure.

Owns the shape alone: `taskfile` has the rules between keys, `docs/tasks.md` is their reference, and the
JSON Schema for editors is made of these Structs (`scripts/definition_schema.py`), descriptions included.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from districomp.units import (
    COUNT_MAX,
    DURATION_PATTERN,
    SIZE_PATTERN,
    UNLIMITED,
    parse_count_or_unlimited,
    parse_duration,
    parse_duration_or_unlimited,
    parse_size_or_unlimited,
)

FILE_VERSION: Final = 1
RETRIES_MAX: Final = 1000
PRIORITY_MAX: Final = 1000
ISOLATIONS: Final = ("none", "rlimit", "cgroup", "sandbox")
FUNCTION_PATTERN: Final = (
    r"([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*):[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
)

# What a file may say in place of the value that the Struct holds, for the schema.
_ZERO: Final = {"const": 0}
# `patternErrorMessage` is what editors show in place of the pattern.
_DURATION: Final = {
    "type": "string",
    "pattern": DURATION_PATTERN,
    "patternErrorMessage": "Write a duration such as 500ms, 15s, 10min, 1h30m or 7d.",
}
_SIZE: Final = {
    "type": "string",
    "pattern": SIZE_PATTERN,
    "patternErrorMessage": "Write a size such as 64KiB, 512MiB or 2GB.",
}
_FUNCTION: Final = {
    "type": "string",
    "pattern": f"^{FUNCTION_PATTERN}$",
    "patternErrorMessage": "Write module:function, for example estimate:run.",
}
_UNLIMITED: Final = {"const": UNLIMITED}
_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": COUNT_MAX}

OptionalSeconds = Annotated[
    float | None,
    msgspec.Meta(
        extra={
            "parse": parse_duration_or_unlimited,
            "what": "a duration such as 10min, or unlimited",
            "schema": {"anyOf": [_DURATION, _UNLIMITED]},
        }
    ),
]
OptionalBytes = Annotated[
    int | None,
    msgspec.Meta(
        extra={
            "parse": parse_size_or_unlimited,
            "what": "a size such as 64MiB, or unlimited",
            "schema": {"anyOf": [_SIZE, _UNLIMITED, _ZERO]},
        }
    ),
]
OptionalCount = Annotated[
    int | None,
    msgspec.Meta(
        extra={
            "parse": parse_count_or_unlimited,
            "what": f"a whole number from 1 to {COUNT_MAX:,}, or unlimited",
            "schema": {"anyOf": [_COUNT, _UNLIMITED]},
        }
    ),
]
Seconds = Annotated[
    float,
    msgspec.Meta(
        extra={"parse": parse_duration, "what": "a duration such as 2s", "schema": {"anyOf": [_DURATION, _ZERO]}}
    ),
]


class ParamKeys(msgspec.Struct):
    """One typed parameter, given at submission with --param NAME=VALUE."""

    type: Annotated[
        Literal["str", "int", "float", "bool", "path", "list"], msgspec.Meta(description="What its values are.")
    ]
    min: Annotated[float | None, msgspec.Meta(description="Least value; of a list, least number of entries.")] = None
    max: Annotated[float | None, msgspec.Meta(description="Largest value; of a list, largest number of entries.")] = (
        None
    )
    default: Annotated[Any, msgspec.Meta(description="Its value when none is given; without it, one must be.")] = None
    expand: Annotated[
        bool, msgspec.Meta(description="Of a list: its entries may use {item} and {index}, as arguments here do.")
    ] = False


class LimitKeys(msgspec.Struct):
    """What one task may use."""

    time: Annotated[
        OptionalSeconds, msgspec.Meta(description="Of one attempt; then TERM to all its processes, KILL 10 s later.")
    ] = None
    memory: Annotated[
        OptionalBytes, msgspec.Meta(description="Memory of all its processes, with isolation: cgroup.")
    ] = None
    cpus: Annotated[
        int, msgspec.Meta(ge=1, le=4096, description="Processors; a task takes so many slots. Not enforced yet.")
    ] = 1
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64, description="Graphics processors. Not enforced yet.")] = 0
    processes: Annotated[OptionalCount, msgspec.Meta(description="Processes at once, with isolation: cgroup.")] = None
    disk: Annotated[OptionalBytes, msgspec.Meta(description="Size of its own folder. Not enforced yet.")] = None
    data: Annotated[OptionalBytes, msgspec.Meta(description="Largest item; a larger one is refused at submission.")] = (
        None
    )
    result: Annotated[OptionalBytes, msgspec.Meta(description="Largest result; a larger one fails the attempt.")] = None
    running: Annotated[
        OptionalCount, msgspec.Meta(description="Tasks of this definition at once in the cluster. Not enforced yet.")
    ] = None


class RetryKeys(msgspec.Struct):
    """What happens when an attempt fails by its own fault."""

    max: Annotated[int, msgspec.Meta(ge=0, le=RETRIES_MAX, description="Retries after the first attempt.")] = 3
    backoff: Annotated[Seconds, msgspec.Meta(description="Before the first retry; doubles up to 60s.")] = 1.0
    never_on: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=255)]],
        msgspec.Meta(description="Exit codes that are a verdict, not a mishap: no retry."),
    ] = []


class RequireKeys(msgspec.Struct):
    """What a worker's machine must have; tasks wait for one that has all of it."""

    arch: Annotated[
        list[str], msgspec.Meta(description="Its processor is one of these, by the name that `uname -m` prints.")
    ] = []
    programs: Annotated[list[str], msgspec.Meta(description="All of these are installed, found by PATH.")] = []
    labels: Annotated[
        list[str], msgspec.Meta(description="It has all of these labels (`labels` in dworker.yaml).")
    ] = []


class TaskFile(msgspec.Struct):
    """How one kind of task runs, and what it may use."""

    # Everything has a default, so that one fault does not hide the next.
    version: Annotated[int, msgspec.Meta(description="The version of this file format: 1.")] = 0
    description: Annotated[str, msgspec.Meta(max_length=1000, description="One line for people.")] = ""
    command: Annotated[
        list[str],
        msgspec.Meta(description="Program and arguments, one process a task; no shell. {item}, {index} and params."),
    ] = []
    stream: Annotated[
        list[str], msgspec.Meta(description="A program started once a slot and fed task after task on standard input.")
    ] = []
    python: Annotated[
        str,
        msgspec.Meta(
            description='"module:function" of the bundle, called in a warm interpreter for each task.',
            extra={"schema": _FUNCTION},
        ),
    ] = ""
    format: Annotated[
        Literal["lines", "json"], msgspec.Meta(description="How a stream program talks: a line or a JSON line a task.")
    ] = "lines"
    bundle: Annotated[
        str, msgspec.Meta(description="A folder beside this file: programs and data, shipped to the workers.")
    ] = ""
    params: Annotated[dict[str, ParamKeys], msgspec.Meta(description="What a submitter may set, by name.")] = {}
    env: Annotated[dict[str, str], msgspec.Meta(description="Environment variables.")] = {}
    inputs: Annotated[
        list[str], msgspec.Meta(description="Files that the submitter gives. Not enforced yet: none are taken.")
    ] = []
    outputs: Annotated[
        list[str], msgspec.Meta(description="Files that come back beside the result. Not enforced yet: none do.")
    ] = []
    limits: Annotated[LimitKeys, msgspec.Meta(description="What one task may use.")] = msgspec.field(
        default_factory=LimitKeys
    )
    retries: Annotated[RetryKeys, msgspec.Meta(description="When an attempt fails by its own fault.")] = msgspec.field(
        default_factory=RetryKeys
    )
    rerun: Annotated[
        Literal["lost", "never"], msgspec.Meta(description="lost: again when its worker is lost; never: at most once.")
    ] = "lost"
    isolation: Annotated[
        str | list[str],
        msgspec.Meta(
            description="How a task is fenced in: none, rlimit, cgroup or sandbox; or a list, all of them.",
            extra={"choices": ISOLATIONS},
        ),
    ] = "rlimit"
    network: Annotated[
        bool | None,
        msgspec.Meta(description="false: none but its own, which a sandbox alone can do, and does if nothing is said."),
    ] = None
    requires: Annotated[RequireKeys, msgspec.Meta(description="What a worker's machine must have.")] = msgspec.field(
        default_factory=RequireKeys
    )
    priority: Annotated[
        int,
        msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX, description="Larger goes first. Not enforced yet."),
    ] = 0
