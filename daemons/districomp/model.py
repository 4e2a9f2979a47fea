"""The nouns that all programs share: task states and their transitions, reasons, items, tokens.

Knows nothing of files, sockets or clocks. The transition table below is the whole life of a task;
`docs/protocol.md` is drawn from it.
"""

from typing import Annotated, Final

import msgspec

# Task states, as stored in a job's compact array: one byte a task. The numbers are part of the
# journal's format and of the protocol; QUEUED is 0 so that a fresh array costs no memory writes.
QUEUED: Final = 0
RUNNING: Final = 1
DONE: Final = 2
FAILED: Final = 3
CANCELLED: Final = 4
SKIPPED: Final = 5

STATE_NAMES: Final = ("queued", "running", "done", "failed", "cancelled", "skipped")

# from -> to, with what causes it. Nothing else is legal.
TRANSITIONS: Final[dict[tuple[int, int], str]] = {
    (QUEUED, RUNNING): "leased to a worker",
    (RUNNING, DONE): "its worker reports success",
    (RUNNING, FAILED): "its last attempt failed",
    (RUNNING, CANCELLED): "cancelled while leased",
    (RUNNING, QUEUED): "retry, its worker lost, or taken back unstarted",
    (QUEUED, CANCELLED): "cancelled before it was leased",
    (QUEUED, SKIPPED): "what it waits for failed",
    (QUEUED, DONE): "reported under a lease of before the coordinator's restart",
    (QUEUED, FAILED): "as above, or rerun: never and nobody knows whether it ran",
    (FAILED, QUEUED): "retried by a person",
    (CANCELLED, QUEUED): "retried by a person",
    (SKIPPED, QUEUED): "retried by a person",
}
ENDED_STATES: Final = (DONE, FAILED, CANCELLED, SKIPPED)

# Why an attempt ended: the closed list of docs/cli.md.
REASONS: Final = (
    "done",
    "exit",
    "signal",
    "timeout",
    "memory",
    "processes",
    "disk",
    "result_too_large",
    "output_invalid",
    "cancelled",
    "worker_lost",
    "worker_stopped",
    "crash_limit",
    "not_started",
    "outcome_unknown",
)

INLINE_BYTES_MAX: Final = 64 * 1024
"""A payload above this travels as a blob."""
STDERR_TAIL_BYTES: Final = 64 * 1024
"""How much of the end of an attempt's standard error is kept."""
WORKER_LOSSES_MAX: Final = 3
"""A task whose worker was lost this often is failed with `crash_limit`."""

_COUNTER_BITS: Final = 40


class Blob(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False, forbid_unknown_fields=True):
    """A payload that is not inline: its SHA-256 (32 bytes) and its size in bytes."""

    sha256: bytes
    size: int


Payload = Annotated[bytes, msgspec.Meta(max_length=INLINE_BYTES_MAX)] | Blob
"""Inline up to that size, whoever sends it."""
PATH_CHARS_MAX: Final = 32_768


class File(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False, forbid_unknown_fields=True):
    """An item of `--each-file`: the path as given (the text of `{item}`) and the content."""

    path: Annotated[str, msgspec.Meta(max_length=PATH_CHARS_MAX)]
    content: Payload


Item = Payload | File
"""What a submitter gives for one task: data, a line, or a file."""


Time = Annotated[float, msgspec.Meta(ge=-1e10, le=1e11)]
"""Unix seconds that can be shown as a date: of the years 1653 to 5138."""
Now = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
"""What a clock says, until the year 2286: whatever is told by it for years is still a Time."""


class Machine(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What a worker's machine is, for `requires` and for people."""

    arch: str = ""
    system: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    isolation: list[str] = []
    programs: list[str] = []
    labels: list[str] = []


def lease_token(epoch: int, number: int) -> int:
    """Pack a lease token `EPOCH.N` into one integer, ordered by epoch, never reused."""
    assert 0 <= number < 1 << _COUNTER_BITS
    return epoch << _COUNTER_BITS | number


def lease_epoch(token: int) -> int:
    """The coordinator's epoch in which a lease was given."""
    return token >> _COUNTER_BITS


def lease_text(token: int) -> str:
    """A lease token as people read it: `EPOCH.N`."""
    return f"{token >> _COUNTER_BITS}.{token & (1 << _COUNTER_BITS) - 1}"


def task_text(job: int, index: int) -> str:
    """A task's id as people read it: `JOB.INDEX`."""
    return f"{job}.{index}"


def parse_task(text: str) -> tuple[int, int]:
    """Read `JOB.INDEX`; ValueError if it is anything else."""
    job, dot, index = text.partition(".")
    if not (dot and job.isascii() and job.isdigit() and index.isascii() and index.isdigit()):
        raise ValueError(f"{text!r} is not a task id; a task is JOB.INDEX, for example 42.7")
    return int(job), int(index)


def item_content(item: Item) -> Payload:
    """What an item puts on a task's standard input."""
    return item.content if isinstance(item, File) else item


def payload_size(payload: Payload | None) -> int:
    """Bytes of a payload, inline or not."""
    if payload is None:
        return 0
    return payload.size if isinstance(payload, Blob) else len(payload)
