"""What is told to the coordinator in columns: attempts that ended as Reports, leases held as Inventory. Pure."""

from itertools import accumulate
from typing import Any, Final

from districomp.messages import BATCH_BYTES, BATCH_TASKS, Inventory, Reports
from districomp.model import Blob, Payload
from dworker.events import AttemptsEnded

# A report's columns besides leases, indexes and attempts, with what an empty one means.
DEFAULTS: Final[tuple[tuple[str, Any], ...]] = (
    ("reasons", "done"),
    ("exit_codes", None),
    ("signals", None),
    ("started", None),
    ("cpu_s", None),
    ("memory_bytes", None),
    ("stderr", b""),
    ("results", None),
)
_ROW_BYTES: Final = 64
"""What a row costs in a frame besides its result and standard error, generously."""

HeldRow = tuple[int, int, int, float | None]
"""Lease, index, attempt, and when it started by the coordinator's clock."""


class Rows:
    """The attempts of one job that ended since the last report."""

    __slots__ = ("attempts", "columns", "ended", "indexes", "leases")

    def __init__(self) -> None:
        self.leases: list[int] = []
        self.indexes: list[int] = []
        self.attempts: list[int] = []
        self.ended: list[float] = []
        self.columns: dict[str, list[Any]] = {name: [] for name, _ in DEFAULTS}

    def extend(self, event: AttemptsEnded, indexes: list[int], attempts: list[int]) -> None:
        """Add the attempts of an event; `attempts` empty means all 1."""
        count = len(event.leases)
        self.leases += event.leases
        self.indexes += indexes
        self.attempts += attempts or [1] * count
        self.ended += event.ended
        for name, default in DEFAULTS:
            self.columns[name] += getattr(event, name) or [default] * count

    def cut(self, job: int, serial: int, offset_s: float) -> list[Reports]:
        """Messages within BATCH_TASKS and about BATCH_BYTES, numbered from `serial`; times moved by `offset_s`."""
        self.ended = [time + offset_s for time in self.ended]
        started = self.columns["started"]
        self.columns["started"] = [None if time is None else time + offset_s for time in started]
        edges = self._edges()
        return [
            self._message(job, serial + number, first, last)
            for number, (first, last) in enumerate(zip([0, *edges], edges, strict=False))
        ]

    def _edges(self) -> list[int]:
        """Where the messages end."""
        count = len(self.leases)
        sizes = map(_row_bytes, self.columns["results"], self.columns["stderr"])
        edges, first, base, previous = [], 0, 0, 0
        for row, total in enumerate(accumulate(sizes)):
            if row > first and (total - base > BATCH_BYTES or row - first >= BATCH_TASKS):
                edges.append(row)
                first, base = row, previous
            previous = total
        return [*edges, count]

    def _message(self, job: int, serial: int, first: int, last: int) -> Reports:
        count = last - first
        attempts = self.attempts[first:last]
        message = Reports(
            serial=serial,
            job=job,
            leases=self.leases[first:last],
            indexes=self.indexes[first:last],
            attempts=[] if attempts.count(1) == count else attempts,
            ended=self.ended[first:last],
        )
        for name, default in DEFAULTS:
            column = self.columns[name][first:last]
            if column.count(default) != count:
                setattr(message, name, column)
        return message


def _row_bytes(result: Payload | None, stderr: bytes) -> int:
    inline = 0 if result is None or isinstance(result, Blob) else len(result)
    return _ROW_BYTES + inline + len(stderr)


def inventories(held: dict[int, list[HeldRow]]) -> list[Inventory]:
    """Messages that name all these, by job. The last one is an empty one, so that there always is one."""
    messages = []
    for job, rows in held.items():
        for first in range(0, len(rows), BATCH_TASKS):
            leases, indexes, attempts, started = map(list, zip(*rows[first : first + BATCH_TASKS], strict=True))
            messages.append(Inventory(job, leases, indexes, attempts, started, last=False))
    return [*messages, Inventory(0, [], [], [], [], last=True)]


def one_row(event: AttemptsEnded, place: int) -> AttemptsEnded:
    """One attempt of an event, as an event."""
    row = AttemptsEnded(event.slot, [event.leases[place]], [event.ended[place]])
    for name, _ in DEFAULTS:
        column = getattr(event, name)
        if column:
            setattr(row, name, [column[place]])
    return row


def spooled_leases(acknowledged: list[Reports]) -> list[int]:
    """Those of reports whose result lies in a file."""
    return [
        lease
        for reports in acknowledged
        for lease, result in zip(reports.leases, reports.results, strict=False)
        if isinstance(result, Blob)
    ]
