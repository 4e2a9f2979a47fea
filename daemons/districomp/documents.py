"""The documents that people and scripts read: `dctl --json`, `/api/v1/*`, the page. `docs/cli.md` describes them.

Field names and their order are a contract. Times are ISO 8601 UTC with milliseconds, durations seconds.
"""

from datetime import UTC, datetime

import msgspec

from districomp.taskdef import Definition


class Counts(msgspec.Struct):
    """Tasks by state."""

    queued: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0


class JobDocument(msgspec.Struct):
    """`dctl job show`, and an entry of `dctl job list`."""

    job: int
    name: str
    definition: str
    state: str
    tasks: int
    counts: Counts
    submitted: str
    started: str | None
    ended: str | None
    eta_s: float | None


class AttemptDocument(msgspec.Struct):
    """One execution of a task; `reason` is null while it runs."""

    worker: str
    started: str | None
    ended: str | None
    reason: str | None
    exit_code: int | None
    signal: int | None
    cpu_s: float | None
    memory_peak_bytes: int | None
    stderr_tail: str


class TaskDocument(msgspec.Struct):
    """`dctl task show`."""

    task: str
    state: str
    attempts: list[AttemptDocument]
    data_bytes: int
    result_bytes: int | None
    sha256: str | None


class ExplainDocument(msgspec.Struct):
    """`dctl explain`: a task's state and the one cause of it. `until`: when that passes by itself, if it does.

    Causes of a queued task: no_worker no_free_slot backoff requirement restart disk_full degraded reading next.
    """

    task: str
    state: str
    cause: str
    text: str
    until: str | None = None


class WorkerDocument(msgspec.Struct):
    """An entry of `dctl worker list`. `running`: started attempts; `words`: null unless pending."""

    worker: str
    name: str
    state: str
    slots: int
    running: int
    arch: str
    memory_bytes: int
    address: str
    last_seen_s: float
    words: str | None = None


class StatusDocument(msgspec.Struct):
    """`dctl status`."""

    cluster: str
    name: str
    version: str
    epoch: int
    uptime_s: float
    workers: int
    slots: int
    tasks: Counts
    tasks_per_s: float


class TokenDocument(msgspec.Struct, omit_defaults=True):
    """An entry of `dctl token list`; `dctl token create` adds `token`, which is never shown again."""

    id: str
    role: str
    created: str
    expires: str
    uses_left: int | None
    used: int
    labels: list[str]
    state: str
    """valid, expired, used_up or revoked"""
    token: str | msgspec.UnsetType = msgspec.UNSET


class AuthorityDocument(msgspec.Struct):
    """`dctl ca rotate`: the new cluster id, and the old ones with the time at which each ends."""

    cluster: str
    former: dict[str, str]


class EnrolmentDocument(msgspec.Struct):
    """`dctl enrol open`: until when; null: closed."""

    open_until: str | None


class ResultDocument(msgspec.Struct, omit_defaults=True):
    """An entry of `dctl results --json`; above 64 KiB `sha256` and `bytes` stand in place of `result`."""

    task: str
    state: str
    result: str | msgspec.UnsetType | None = msgspec.UNSET
    encoding: str | msgspec.UnsetType = msgspec.UNSET
    sha256: str | msgspec.UnsetType = msgspec.UNSET
    bytes: int | msgspec.UnsetType = msgspec.UNSET


class DefinitionDocument(msgspec.Struct):
    """An entry of `dctl def list`: what is live, and the error of a file that could not take its place."""

    name: str
    version: str
    description: str
    runner: str
    origin: str
    problems: list[str]


class DefinitionShowDocument(msgspec.Struct):
    """`dctl def show`: a live definition, checked and complete, and what is wrong with files of its name."""

    name: str
    version: str
    origin: str
    definition: Definition
    problems: list[str]


def iso_time(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601 UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
