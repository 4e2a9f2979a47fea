"""A task while it is leased, and what its ended attempts count for.

There is no object for a queued task: it is a byte in its job's array (`job.py`). Knows nothing of
workers' connections or of placement.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from districomp.model import TRANSITIONS, WORKER_LOSSES_MAX
from districomp.taskdef import Definition

if TYPE_CHECKING:
    from dcoord.core.job import Job

BACKOFF_S_MAX: Final = 60.0

LEGAL: Final = frozenset(TRANSITIONS)
"""The transition table; whoever changes a state looks here."""

STOPPED: Final = ("worker_stopped", "cancelled")
"""Reasons for which a task is queued again at once. A task that is still wanted can be reported as cancelled: its
attempt was stopped while it was leased elsewhere, then that lease was lost, and the worker came back before the end."""
NOT_ITS_FAULT: Final = ("worker_lost", *STOPPED)
"""Reasons that use up no retry."""


class Lease(Struct, gc=False, eq=False):
    """One task given to one worker. `started` (Unix seconds) once the worker said so; `stopping`: the task has ended without it.

    There are hundreds of thousands at a time, and no cycle goes through one: the garbage collector need not look at them.
    """

    job: "Job"
    index: int
    attempt: int
    started: float | None = None
    stopping: bool = False


class Tries(NamedTuple):
    """What a task that did not end at its first attempt has behind it. Shared by all tasks that have the same."""

    attempts: int = 0
    failures: int = 0
    losses: int = 0

    def after(self, reason: str) -> "Tries":
        """With one more attempt, which ended with `reason` and was not the last."""
        return _after(self, reason)


@lru_cache(4096)
def _after(tries: Tries, reason: str) -> Tries:
    failed = reason not in NOT_ITS_FAULT
    return Tries(tries.attempts + 1, tries.failures + failed, tries.losses + (reason == "worker_lost"))


NO_TRIES: Final = Tries()


def retry_delay_s(definition: Definition, tries: Tries | None, reason: str, exit_code: int | None) -> float | None:
    """How long a task whose attempt just ended badly waits for the next one; None: it has failed for good.

    `tries` is what it has behind it without this attempt.
    """
    if definition.rerun == "never":
        return None
    if reason in STOPPED:
        return 0.0
    if reason == "worker_lost":
        losses = 1 + (tries.losses if tries else 0)
        return None if losses >= WORKER_LOSSES_MAX else 0.0
    failures = 1 + (tries.failures if tries else 0)
    retries = definition.retries
    if failures > retries.max or (reason == "exit" and exit_code in retries.never_on):
        return None
    # The exponent is bounded because a person may set max to a million.
    return min(BACKOFF_S_MAX, retries.backoff_s * 2.0 ** min(failures - 1, 32))


def final_reason(definition: Definition, reason: str) -> str:
    """The reason to record for an attempt that `retry_delay_s` made the last one."""
    if definition.rerun == "never" and reason in NOT_ITS_FAULT:
        return "outcome_unknown"
    return "crash_limit" if reason == "worker_lost" else reason
