"""What a worker holds: jobs it has heard of, leases that wait, slots with the attempts in hand. Pure.

No object per waiting lease: an Assign stays the columns that it came as, with a cursor.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from districomp.messages import Assign, JobSpec
from districomp.model import Item
from districomp.placeholders import Place, split_argument
from districomp.taskdef import Definition
from dworker.events import AttemptsEnded
from dworker.reports import HeldRow

PIPELINE_MAX: Final = 512
"""The most attempts that a slot with a lasting process has in hand."""
PIPELINE_S: Final = 0.02
"""How much work of one job such a slot has in hand: what cannot be recalled or go to another slot."""
TAKE_BACK_S: Final = 0.05
"""When a slot's first attempt runs so long, or what the slot has in hand would take twice that, others get what waits behind it."""
AHEAD_MAX: Final = 16
"""The most attempts in the hand of a slot in which processes follow one another."""
AHEAD_S: Final = 0.01
"""How much work of one job such a slot has in hand: two at least only if each ends, on average, before it is said to last and
what follows it comes back."""
_MEMORY: Final = 0.8
"""Weight of the past in a job's mean attempt time."""


def problem(definition: Definition | None, isolation: tuple[str, ...], lacking: Mapping[str, str]) -> str:
    """Why tasks of a definition cannot run here, as a sentence; '' if they can. None: it could not be decoded."""
    if definition is None:
        return "This worker does not understand the definition: it is of another version of districomp."
    for level in definition.isolation:
        if level not in isolation:
            why = f"It has no {level}: {lacking[level]}." if lacking.get(level) else ""
            return f"The definition asks for isolation {level!r}; this worker has {', '.join(isolation)}. {why}".strip()
    return ""


def arguments_vary(definition: Definition, matrix: Sequence[tuple[str, Any]]) -> bool:
    """Whether the arguments differ from task to task by a param of the matrix. ValueError: they are not well formed."""
    if not matrix or definition.runner == "python":
        return False
    names = [name for name, _ in matrix]
    places = (part for argument in definition.argv for part in split_argument(argument))
    return any(isinstance(part, Place) and part.name in names for part in places)


def has_lasting_process(spec: JobSpec, definition: Definition | None) -> bool:
    """Whether one process can take several tasks of a job at once."""
    if definition is None or definition.runner == "command":
        return False
    try:
        return not arguments_vary(definition, spec.matrix)
    except ValueError:
        return False


def may_follow(definition: Definition | None) -> bool:
    """Whether a slot may have several processes of a definition in hand, one after another.

    Not where a task must not begin twice: its lease is all that says whether it may have begun. Not where the slot has more to do
    than to start a process.
    """
    if definition is None or definition.runner != "command":
        return False
    return definition.rerun != "never" and not {"sandbox", "cgroup"}.intersection(definition.isolation)


class Work:
    """A job as this worker knows it.

    `problem`: why its tasks cannot run here, '' if they can. `lasts`: one process takes many of them. `follows`: a slot may
    have several processes in hand.
    """

    __slots__ = (
        "_mean_s", "_window", "definition", "follows", "held", "job", "lasts", "matrix", "numbers", "params", "problem",
    )  # fmt: skip

    def __init__(self, spec: JobSpec, definition: Definition | None, problem: str, *, can_queue: bool = False) -> None:
        self.job = spec.job
        self.params: dict[str, Any] = spec.params
        self.numbers = spec.numbers
        self.matrix = spec.matrix
        self.definition = definition
        self.problem = problem
        self.held = 0
        self.lasts = has_lasting_process(spec, definition)
        self.follows = can_queue and may_follow(definition)
        self._window = 1
        self._mean_s: float | None = None

    @property
    def window(self) -> int:
        """How many attempts a slot may have in hand at once: one while they are long, hundreds while they are short."""
        return self._window

    def timed(self, count: int, busy_s: float) -> None:
        """Attempts of this job took so long; the window follows, growing at most twofold a step."""
        if not self.lasts and not self.follows:
            return
        most, work_s = (PIPELINE_MAX, PIPELINE_S) if self.lasts else (AHEAD_MAX, AHEAD_S)
        mean = busy_s / count
        self._mean_s = mean if self._mean_s is None else _MEMORY * self._mean_s + (1 - _MEMORY) * mean
        fitting = int(work_s / self._mean_s) if self._mean_s * most > work_s else most
        self._window = max(1, min(fitting, 2 * self._window))

    def slowed(self) -> None:
        """One of them takes long and held others up; if they are processes, one at a time until they are short again."""
        if self.follows:
            self._mean_s = max(self._mean_s or 0.0, AHEAD_S)
            self._window = 1

    def excess(self, hand: int, *, is_stuck: bool) -> int:
        """How many of a slot's attempts in hand others should have; the window follows. `is_stuck`: the first takes long."""
        if is_stuck:
            self._window = 1
        elif self._mean_s is None or hand * self._mean_s <= 2 * TAKE_BACK_S:
            return 0
        return max(0, hand - self._window)


class Chunk:
    """The leases of one Assign that have not started; those before `_next` have, those in `_gone` were taken out."""

    __slots__ = ("_attempts", "_gone", "_indexes", "_items", "_next", "lease", "left", "work")

    def __init__(self, work: Work, assign: Assign) -> None:
        self.work = work
        self.lease = assign.lease
        self.left = len(assign.indexes)
        self._indexes = assign.indexes
        self._attempts = assign.attempts
        self._items = assign.items
        self._next = 0
        self._gone: set[int] = set()

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest lease of the Assign."""
        return self.lease, self.lease + len(self._indexes) - 1

    def take(self, count: int) -> tuple[list[int], list[int], list[int], list[Item]]:
        """The next `count` as columns: leases, indexes, attempts (empty: all 1), items (empty: no input)."""
        assert 0 < count <= self.left
        first, gone = self._next, self._gone
        if gone:
            places: list[int] = []
            while len(places) < count:
                if first not in gone:
                    places.append(first)
                first += 1
            self._next = first
        else:
            places = list(range(first, first + count))
            self._next = first + count
        self.left -= count
        indexes = [self._indexes[place] for place in places]
        attempts = [self._attempts[place] for place in places] if self._attempts else []
        if self.work.numbers is not None:
            start, step = self.work.numbers
            items: list[Item] = [b"%d" % (start + index * step) for index in indexes]
        else:
            items = [self._items[place] for place in places] if self._items else []
        return [self.lease + place for place in places], indexes, attempts, items

    def withdraw(self, lease: int) -> tuple[int, int] | None:
        """Take one lease out; its index and attempt, or None if it is not here any more."""
        place = lease - self.lease
        if not self._next <= place < len(self._indexes) or place in self._gone:
            return None
        self._gone.add(place)
        self.left -= 1
        return self._indexes[place], self._attempts[place] if self._attempts else 1

    @property
    def first(self) -> int:
        """No lease before this one is here."""
        return self.lease + self._next

    def rows(self) -> list[tuple[int, int, int]]:
        """Lease, index and attempt of all that are left."""
        places = [place for place in range(self._next, len(self._indexes)) if place not in self._gone]
        return [
            (self.lease + place, self._indexes[place], self._attempts[place] if self._attempts else 1)
            for place in places
        ]


class Slot:
    """One slot. `hand`: lease -> (index, attempt) of its attempts, oldest first; the oldest is the one that runs, since `since`.

    `announced`: the lease last named in a Started. `disowned`: the attempts belong to a cluster that is
    gone, nobody hears of their end. `relieved`: the lease at the head when all behind it was last asked
    back, `trimmed`: when some was; `stopping`: why attempts were told to end that may be on their way back here.
    """

    __slots__ = ("announced", "disowned", "hand", "number", "relieved", "since", "stopping", "trimmed", "work")

    def __init__(self, number: int) -> None:
        self.number = number
        self.work: Work | None = None
        self.hand: dict[int, tuple[int, int]] = {}
        self.since = 0.0
        self.announced = self.relieved = self.trimmed = -1
        self.disowned = False
        self.stopping: dict[int, str] = {}

    def clear(self) -> None:
        """The last attempt in hand is gone."""
        self.work, self.disowned = None, False
        self.stopping.clear()

    def head(self) -> int:
        """The lease of the attempt that runs."""
        return next(iter(self.hand))

    def check(self) -> None:
        """Every invariant."""
        assert bool(self.hand) == (self.work is not None), "a slot's job is not that of its hand"
        assert len(self.hand) <= PIPELINE_MAX, "a slot's hand is too large"
        assert self.work is None or self.work.lasts or len(self.hand) <= (AHEAD_MAX if self.work.follows else 1), (
            "a slot whose process takes one task has too many"
        )
        assert self.hand or not (self.disowned or self.stopping), "an empty slot is disowned, or stops something"


class Spooled(msgspec.Struct):
    """An attempt that ended; its report waits for the upload of its result."""

    work: Work
    index: int
    attempt: int
    event: AttemptsEnded


class Queue:
    """The waiting leases, in the order given."""

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.count = 0

    def add(self, chunk: Chunk) -> None:
        """Append an Assign's leases."""
        self.chunks.append(chunk)
        self.count += chunk.left

    def put_back(self, work: Work, rows: list[tuple[int, int, int]], items: list[Item]) -> None:
        """Leases (index, attempt) that were taken and did not start are the first in line again. Their order is kept."""
        first = len(rows)
        for place in range(len(rows) - 1, -1, -1):
            if place and rows[place - 1][0] + 1 == rows[place][0]:
                continue
            leases, indexes, attempts = (list(column) for column in zip(*rows[place:first], strict=True))
            chunk = Chunk(work, Assign(work.job, leases[0], indexes, attempts, items[place:first]))
            self.chunks.appendleft(chunk)
            self.count += chunk.left
            first = place

    def head(self) -> Chunk | None:
        """The chunk whose leases start next."""
        while self.chunks and not self.chunks[0].left:
            self.chunks.popleft()
        return self.chunks[0] if self.chunks else None

    def withdraw(self, leases: list[int]) -> list[tuple[Work, int, int, int]]:
        """Take these out; work, lease, index and attempt of those that were still here."""
        # By what is left of them: what was put back was taken from the beginning of one that is here still.
        chunks = sorted((chunk for chunk in self.chunks if chunk.left), key=lambda chunk: chunk.first)
        found, place = [], 0
        for lease in sorted(leases):
            while place + 1 < len(chunks) and chunks[place + 1].first <= lease:
                place += 1
            row = chunks[place].withdraw(lease) if chunks else None
            if row is not None:
                chunks[place].work.held -= 1
                found.append((chunks[place].work, lease, *row))
        self.count -= len(found)
        return found

    def clear(self) -> list[int]:
        """Take everything out; the leases."""
        leases = [lease for chunk in self.chunks for lease, _, _ in chunk.rows()]
        for chunk in self.chunks:
            chunk.work.held -= chunk.left
        self.chunks.clear()
        self.count = 0
        return leases


def held_rows(
    queue: Queue, slots: list[Slot], spooled: dict[int, Spooled], offset_s: float
) -> dict[int, list[HeldRow]]:
    """Every lease held and not yet reported, by job; times moved by `offset_s`."""
    rows: dict[int, list[HeldRow]] = {}
    for chunk in queue.chunks:
        rows.setdefault(chunk.work.job, []).extend((*row, None) for row in chunk.rows())
    for slot in slots:
        if slot.work is None or slot.disowned:
            continue
        since: float | None = slot.since + offset_s
        for lease, (index, attempt) in slot.hand.items():
            rows.setdefault(slot.work.job, []).append((lease, index, attempt, since))
            since = None
    for lease, entry in spooled.items():
        started = entry.event.started[0] if entry.event.started else None
        since = None if started is None else started + offset_s
        rows.setdefault(entry.work.job, []).append((lease, entry.index, entry.attempt, since))
    return rows


def spans(queue: Queue, slots: list[Slot], spooled: dict[int, Spooled]) -> list[tuple[int, int]]:
    """The lowest and the highest lease of each group that is held and not yet reported."""
    held = [chunk.span for chunk in queue.chunks if chunk.left]
    held += [(min(slot.hand), max(slot.hand)) for slot in slots if slot.hand]
    return held + [(lease, lease) for lease in spooled]
