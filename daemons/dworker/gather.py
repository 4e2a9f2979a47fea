"""What ended and is not reported yet, and when it will be: in company, for every report is a commit. Pure.

A report by itself costs the coordinator many times what a further row of one costs. So while more waits here, what
ended waits for more to end: shorter where somebody may wait for just that.
"""

from math import inf
from typing import Final

from districomp.messages import BATCH_TASKS, Reports
from dworker.events import AttemptsEnded
from dworker.hold import Work
from dworker.reports import Rows

LAST_S: Final = 0.002
"""So long waits for company what ended of a job of which nothing else is held here."""
GATHER_S: Final = 0.012
"""The same if more of each job is held here: nobody is done when these are. Longer than the spawn server gathers, so that two
of its replies meet."""
SLACK_S: Final = 0.01
"""And then for whatever wakes us up anyway, so much longer: to be woken up costs more than to take in what has come."""


class Gathering:
    """The rows by job. `due`: when they are to be reported at the latest; None: there are none, or it was not asked yet."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Work, Rows]] = {}
        self._count = 0
        self._ripe = inf
        self.due: float | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def leases(self) -> list[list[int]]:
        """By job."""
        return [rows.leases for _, rows in self._rows.values()]

    def add(self, work: Work, event: AttemptsEnded, indexes: list[int], attempts: list[int]) -> None:
        """Attempts of a job ended; `attempts` empty means all 1."""
        found = self._rows.get(work.job)
        if found is None:
            found = self._rows[work.job] = work, Rows()
        found[1].extend(event, indexes, attempts)
        self._count += len(indexes)

    def is_due(self, now: float, waiting: int) -> bool:
        """Whether to report now: more has ended than waits here, or a whole message, or it is time. Else `due` says when."""
        if not self._count or self._count > min(waiting, BATCH_TASKS - 1):
            return self._count > 0
        has_more = all(work.held for work, _ in self._rows.values())
        self._ripe = min(self._ripe, now + (GATHER_S if has_more else LAST_S))
        due = self._ripe + (SLACK_S if has_more else 0.0)
        self.due = due if self.due is None else min(self.due, due)
        return now >= self._ripe

    def take(self, serial: int, offset_s: float) -> list[Reports]:
        """All of them as messages, numbered from `serial`, their times moved by `offset_s`; nothing is left."""
        reports: list[Reports] = []
        for job, (_, rows) in self._rows.items():
            reports += rows.cut(job, serial + len(reports), offset_s)
        self.clear()
        return reports

    def clear(self) -> None:
        """Nobody wants to know."""
        self._rows.clear()
        self._count, self._ripe, self.due = 0, inf, None
