"""What the core writes down before anybody hears of it, and what it reads back after a restart.

The journal stores these; only the journal knows how. A commit takes the records of one batch, in
their order, in one transaction.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from districomp.model import Item
from districomp.outcome import Outcome


class Record(msgspec.Struct, gc=False):
    """The base of all records."""


class DefinitionRecord(Record):
    """A definition's version, written before the first job that uses it. `body`: `taskdef.Definition` in MessagePack."""

    digest: str
    name: str
    body: bytes


class PayloadRecord(Record):
    """A chunk of a job's items: those of the indices first, first + 1, ... Written before the job's own record."""

    job: int
    first: int
    items: list[Item]


class JobRecord(Record):
    """A submission, complete. Payloads without one are of a submission that never ended, and are dropped at a restart."""

    job: int
    request_id: str
    user: str
    name: str
    definition: str
    definition_name: str
    params: dict[str, Any]
    count: int
    numbers: tuple[int, int] | None
    max_fails: int | None
    submitted: float
    matrix: list[tuple[str, list[Any]]] = []


class DropRecord(Record):
    """A submission was given up: forget its payloads."""

    job: int


class FrontierRecord(Record):
    """No index of the job at or above `frontier` has ever been leased. `started`: when its first lease was given."""

    job: int
    frontier: int
    started: float


class OutcomeRecord(Record):
    """Attempts that ended (or, with `sweep`, tasks that need none any more). One row, packed.

    `body`: as the journal keeps it and clients are sent it, once the journal has packed it.
    """

    outcome: Outcome
    body: bytes = b""


class JobEndRecord(Record):
    """A job ended: its state's name, its tasks by state (model.STATE_NAMES' order), and when."""

    job: int
    state: str
    counts: list[int]
    ended: float


class ResumeRecord(Record):
    """An ended job has queued tasks again (an outcome before it says which)."""

    job: int


class WorkerRecord(Record):
    """A worker joined (`present`), or left for good or was declared lost."""

    worker: str
    name: str
    present: bool
    at: float


class TokenRecord(Record):
    """A join token as it is now. `hash`: SHA-256 of its secret; `id`: the first 8 hex digits of that."""

    id: str
    hash: bytes
    role: str
    created: float
    expires: float
    uses_left: int | None
    used: int
    labels: list[str]
    revoked: bool = False


class IdentityRecord(Record):
    """A certificate's holder as it is now. `token`: the id of the token it came with, '' (a person or the local socket).

    `expires`: the end of its newest certificate. `removed`: forgotten by people, refused for good. `key`: SHA-256 of
    its public key: only who has that can be this identity again.
    """

    id: str
    role: str
    name: str
    token: str
    labels: list[str]
    since: float
    expires: float
    revoked: bool = False
    removed: bool = False
    key: bytes = b""


Records = (
    DefinitionRecord
    | PayloadRecord
    | JobRecord
    | DropRecord
    | FrontierRecord
    | OutcomeRecord
    | JobEndRecord
    | WorkerRecord
    | TokenRecord
    | IdentityRecord
)


class Head(msgspec.Struct, array_like=True, gc=False):
    """The part of an Outcome that says what became of the tasks; defaults as there. Indexes in order are a range."""

    serial: int
    indexes: Sequence[int]
    states: list[int]
    reasons: list[str]
    sweep: int | None


class RestoredJob(msgspec.Struct):
    """A job as the journal has it. `chunks`: the first index of each payload chunk; `heads`: its rows by serial.

    Of a job that has ended, unless it is asked for by its number, these two are empty, and so are its params, numbers and matrix.
    """

    record: JobRecord
    frontier: int
    started: float | None
    chunks: list[int]
    heads: list[Head]
    last_serial: int
    end: JobEndRecord | None


class Restored(msgspec.Struct):
    """Everything that the core starts from. `epoch` is already this start's own; `workers`: those present when it stopped.

    `seal_key`: what leases are sealed with (`seals.py`), the same for as long as the journal lives.
    """

    epoch: int
    cluster: str
    definitions: dict[str, bytes]
    jobs: list[RestoredJob]
    workers: list[WorkerRecord]
    last_job: int
    tokens: list[TokenRecord] = []
    identities: list[IdentityRecord] = []
    seal_key: bytes = b""
