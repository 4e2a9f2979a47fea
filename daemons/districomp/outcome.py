"""What became of attempts that ended: the row that the journal keeps and that clients are sent."""

import msgspec

from districomp.model import Payload


class Outcome(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Attempts of one job that ended together: a row of the journal, and what ResultRows carries.

    `serial` numbers a job's rows from 1. `states` are what the tasks became (empty: all done; 0 = to be retried).
    `sweep`: a state that every task still queued took at this point (a cancelled job); or 0: a person had every
    task in one of `states` queued again. Such a row names no tasks.
    """

    job: int
    serial: int
    worker: str
    indexes: list[int]
    states: list[int] = []
    attempts: list[int] = []
    reasons: list[str] = []
    exit_codes: list[int | None] = []
    signals: list[int | None] = []
    started: list[float | None] = []
    ended: list[float] = []
    cpu_s: list[float | None] = []
    memory_bytes: list[int | None] = []
    stderr: list[bytes] = []
    results: list[Payload | None] = []
    sweep: int | None = None
