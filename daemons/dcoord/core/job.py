"""A job: one byte of state a task, and where to look for the next ones that can be leased.

Nothing here grows with the number of queued tasks but that byte: what is to be leased next is found in the
states themselves, at memory speed. The only code that changes a task's state, and it looks at the transition table each time. Knows
nothing of workers, messages or the clock; `reports.py` and `place.py` decide what happens.
"""

from collections import deque
from collections.abc import Iterable
from math import inf

from msgspec.structs import replace

from dcoord.core.doubt import Doubt
from dcoord.core.payload import Payloads
from dcoord.core.records import Head, JobRecord, RestoredJob
from dcoord.core.task import LEGAL, NO_TRIES, Tries
from districomp.model import CANCELLED, DONE, ENDED_STATES, FAILED, QUEUED, RUNNING, SKIPPED
from districomp.outcome import Outcome
from districomp.taskdef import Definition

# An ended job costs no arrays of its own; nobody writes to these.
_NO_STATES = bytearray()
_NO_INDICES: deque[int] = deque()

MEAN_WEIGHT = 0.2
"""Weight of the newest batch in the running means of duration and size."""


class Job:
    """One submission. `states` is dropped when the job has ended; `counts` (by state) stays."""

    __slots__ = (
        "counts",
        "cursor",
        "definition",
        "doubt",
        "ended",
        "frontier",
        "given",
        "leased_before",
        "mean_result_bytes",
        "mean_s",
        "payloads",
        "position",
        "ready",
        "record",
        "rests_until",
        "serial",
        "started",
        "state_at_end",
        "states",
        "tries",
        "waiting",
    )

    def __init__(self, record: JobRecord, definition: Definition, chunks: list[int]) -> None:
        self.record = record
        self.definition = definition
        self.states = bytearray(record.count)
        self.counts = [record.count, 0, 0, 0, 0, 0]
        self.position = 0
        """Whatever is queued below it is in `ready`, in `waiting` or in doubt. Raised as tasks are taken, and put back
        when tasks below it are queued again in bulk."""
        self.cursor = 0
        """No index at or above it was ever leased."""
        self.frontier = 0
        """No index at or above it may be leased before a FrontierRecord is written."""
        self.leased_before = 0
        """No index at or above it was leased before the job was restored."""
        self.ready: deque[int] = deque()
        """Given back one by one: to be leased before all others; one whose task is not queued any more is skipped."""
        self.waiting: dict[int, float] = {}
        """Queued tasks that wait for their backoff, until when (Unix seconds)."""
        self.doubt = Doubt()
        self.tries: dict[int, Tries] = {}
        self.serial = 0
        self.started: float | None = None
        self.ended: float | None = None
        self.state_at_end = ""
        self.mean_s: float | None = None
        self.given = 0
        """How many workers were given something while nobody knew how long its tasks take."""
        self.rests_until = 0.0
        """Until when it is not in the backlog although it has tasks to lease."""
        self.mean_result_bytes = 4096.0
        self.payloads = Payloads(chunks, record.count) if chunks else None

    @property
    def id(self) -> int:
        """The job's number."""
        return self.record.job

    @property
    def is_ended(self) -> bool:
        """Whether no task is queued or running and that is recorded."""
        return self.ended is not None

    @property
    def state(self) -> str:
        """The job's state as people read it."""
        if self.is_ended:
            return self.state_at_end
        return "queued" if self.started is None else "running"

    def final_state(self) -> str:
        """What the job's state is when it ends now."""
        if self.counts[FAILED] or self.counts[SKIPPED]:
            return "failed"
        return "cancelled" if self.counts[CANCELLED] else "done"

    @property
    def finished(self) -> int:
        """Tasks in a final state."""
        return self.record.count - self.counts[QUEUED] - self.counts[RUNNING]

    @property
    def leasable(self) -> int:
        """Tasks that could be leased now, their items aside (an upper bound: `ready` may hold stale indices)."""
        return min(self.counts[QUEUED], len(self.ready) + len(self.states) - self.position)

    def attempt_of(self, index: int) -> int:
        """The number of the attempt that a lease given now is."""
        tries = self.tries.get(index)
        return 1 if tries is None else tries.attempts + 1

    def count_try(self, index: int, reason: str) -> None:
        """An attempt ended with `reason`, and there will be another."""
        self.tries[index] = self.tries.get(index, NO_TRIES).after(reason)

    # ---- state changes ----

    def move(self, index: int, state: int) -> None:
        """Change one task's state; an illegal change is our bug."""
        old = self.states[index]
        assert (old, state) in LEGAL, f"task {self.id}.{index}: {old} -> {state}"
        self.states[index] = state
        self.counts[old] -= 1
        self.counts[state] += 1

    def finish(self, indexes: Iterable[int], state: int) -> None:
        """Running tasks took a final state."""
        assert (RUNNING, state) in LEGAL
        states = self.states
        moved = 0
        for index in indexes:
            assert states[index] == RUNNING, f"task {self.id}.{index} is not running"
            states[index] = state
            moved += 1
        self.counts[RUNNING] -= moved
        self.counts[state] += moved

    def give_back(self, index: int) -> None:
        """A leased task is queued again, and next in line."""
        self.move(index, QUEUED)
        self.ready.appendleft(index)

    def postpone(self, index: int, until: float) -> None:
        """A leased task is queued again, and waits for `due`."""
        self.move(index, QUEUED)
        self.waiting[index] = until

    def due(self, indexes: list[int], now: float) -> None:
        """The backoff of those that still wait, and not for a later time, has passed."""
        for index in indexes:
            if self.waiting.get(index, inf) <= now:
                del self.waiting[index]
                self.ready.append(index)

    def settle_doubt(self) -> None:
        """Nobody holds what is in doubt, nor what was queued again meanwhile: all of it can be leased."""
        self.doubt.clear()
        self.position = 0

    def sweep(self, state: int) -> int:
        """Every queued task takes a final state, at memory speed; how many did."""
        assert (QUEUED, state) in LEGAL
        swept = self.counts[QUEUED]
        self.states = changed(self.states, [QUEUED], state)
        self.counts[QUEUED] = 0
        self.counts[state] += swept
        self.ready.clear()
        self.waiting.clear()
        self.doubt.clear()
        return swept

    def requeue(self, states: list[int]) -> int:
        """Tasks in these final states are queued again, with nothing behind them; how many are."""
        assert all((state, QUEUED) in LEGAL for state in states)
        self._forget_tries(states)
        requeued = sum(self.counts[state] for state in states)
        self.states = changed(self.states, states, QUEUED)
        for state in states:
            self.counts[state] = 0
        self.counts[QUEUED] += requeued
        # With a doubt open nothing below its end is leased; `settle_doubt` puts the position back then.
        self.position = min(self.position, self.doubt.end)
        return requeued

    def _forget_tries(self, states: list[int]) -> None:
        """Tasks in these states begin anew when they are queued again."""
        self.tries = {index: tries for index, tries in self.tries.items() if self.states[index] not in states}

    def take(self, limit: int) -> list[int]:
        """Up to `limit` tasks that can be leased, now running; their items, if any, are those of one chunk in memory.

        Empty when there is none, or when the items must be read first (`wanted_payload`).
        """
        indexes = self._take_ready(limit) if self.ready else []
        return indexes if indexes or self.ready else self._take_next(limit)

    def next_index(self) -> int:
        """The first task from `position` on that can be leased, and the position is there; the job's size if there is none."""
        at = self.states.find(QUEUED, self.position)
        while 0 <= at < self.cursor and at in self.waiting:
            at = self.states.find(QUEUED, at + 1)
        self.position = at if at >= 0 else len(self.states)
        return self.position

    def _take_next(self, limit: int) -> list[int]:
        start, stop = self.next_index(), len(self.states)
        if start == stop:
            return []
        if self.payloads is not None:
            if self.payloads.loaded(start) is None:
                return []
            stop = self.payloads.chunk_of(start)[1]
        end = min(start + limit, stop)
        may_wait = start < self.cursor and bool(self.waiting)
        if not may_wait and self.states.count(QUEUED, start, end) == end - start:
            indexes = list(range(start, end))
            self.states[start:end] = bytes((RUNNING,)) * (end - start)
            self.counts[QUEUED] -= end - start
            self.counts[RUNNING] += end - start
        else:
            indexes = self._scattered(start, stop, limit)
            for index in indexes:
                self.move(index, RUNNING)
            end = indexes[-1] + 1
        self.position = end
        self.cursor = max(self.cursor, end)
        return indexes

    def _scattered(self, start: int, stop: int, limit: int) -> list[int]:
        """Up to `limit` tasks of this stretch that can be leased, whatever lies between them; `start` is one."""
        indexes: list[int] = []
        at = start
        while at >= 0 and len(indexes) < limit:
            if at not in self.waiting:
                indexes.append(at)
            at = self.states.find(QUEUED, at + 1, stop)
        return indexes

    def _take_ready(self, limit: int) -> list[int]:
        indexes: list[int] = []
        payloads = self.payloads
        chunk: tuple[int, int] | None = None
        while self.ready and len(indexes) < limit:
            index = self.ready[0]
            if self.states[index] == QUEUED and index not in self.waiting:
                if payloads is not None:
                    if payloads.loaded(index) is None or (chunk is not None and not chunk[0] <= index < chunk[1]):
                        break
                    chunk = payloads.chunk_of(index)
                self.move(index, RUNNING)
                indexes.append(index)
            self.ready.popleft()
        return indexes

    def wanted_payload(self) -> int | None:
        """The chunk (its first index) to read before `take` can go on; None if there is none or it is on its way."""
        if self.payloads is None:
            return None
        while self.ready and self.states[self.ready[0]] != QUEUED:
            self.ready.popleft()
        return self.payloads.want(self.ready[0] if self.ready else self.next_index())

    def has_leasable(self) -> bool:
        """Whether a task could be leased now, exactly; looks at the array."""
        at = self.states.find(QUEUED, self.position)
        while at >= 0:
            if at not in self.waiting:
                return True
            at = self.states.find(QUEUED, at + 1)
        return any(self.states[index] == QUEUED and index not in self.waiting for index in self.ready)

    def end(self, state: str, at: float) -> None:
        """No task is queued or running any more: keep what people ask for, drop what only leasing needs."""
        self.state_at_end = state
        self.ended = at
        self.states = _NO_STATES
        self.position = self.cursor = 0
        self.doubt.clear()
        self.ready, self.waiting, self.tries, self.payloads = _NO_INDICES, {}, {}, None
        # Another record, because the journal may not have written this one yet. It has what is dropped here.
        self.record = replace(self.record, params={}, matrix=[])

    # ---- figures ----

    def learn(self, outcome: Outcome) -> float | None:
        """Take a batch of ended attempts into the running means; how long they took, None if nobody knows."""
        count, mean = len(outcome.indexes), None
        if outcome.started and outcome.ended:
            took = [e - s for s, e in zip(outcome.started, outcome.ended, strict=True) if s is not None]
            if took:
                mean = max(0.0, sum(took) / len(took))  # a worker's clock may have been set back
                self.mean_s = mean if self.mean_s is None else self.mean_s + MEAN_WEIGHT * (mean - self.mean_s)
        if outcome.results:
            size = sum(len(r) if isinstance(r, bytes) else 128 for r in outcome.results)
            self.mean_result_bytes += MEAN_WEIGHT * (size / count - self.mean_result_bytes)
        return mean

    # ---- after a restart ----

    def restore(self, restored: RestoredJob) -> None:
        """Take what the journal knows of a job that has not ended."""
        for head in restored.heads:
            self._apply(head)
        self._forget_tries(list(ENDED_STATES))
        self.position = self.frontier = self.cursor = self.leased_before = restored.frontier
        self.started = restored.started
        self.serial = restored.last_serial
        # Looking for a state that no task has is ten times as quick as counting; and most are queued.
        self.counts = [self.states.count(state) if self.states.find(state) >= 0 else 0 for state in ENDED_STATES]
        self.counts = [self.record.count - sum(self.counts), 0, *self.counts]
        self.doubt.begin(self.states, self.frontier)

    def _apply(self, head: Head) -> None:
        if head.sweep == QUEUED:
            self._forget_tries(head.states)
        apply_head(self.states, head)
        if head.sweep is None and QUEUED in head.states:
            for index, state, reason in zip(head.indexes, head.states, head.reasons, strict=True):
                if state == QUEUED:
                    self.count_try(index, reason)

    def check(self) -> None:
        """Every invariant of a job; AssertionError names the broken one."""
        if self.is_ended:
            assert self.counts[QUEUED] == self.counts[RUNNING] == 0
            assert sum(self.counts) == self.record.count
            return
        assert [self.states.count(s) for s in range(6)] == self.counts, f"job {self.id}: counts are off"
        assert self.cursor <= self.record.count
        assert self.states.find(RUNNING, self.cursor) < 0, f"job {self.id}: a task above the cursor runs"
        assert self.doubt.end <= self.position, f"job {self.id}: what is in doubt could be leased"
        reachable = {*self.ready, *self.waiting}
        # With a doubt open, what is queued below its end becomes leasable when that is settled.
        at = self.states.find(QUEUED, self.doubt.end, self.position)
        while at >= 0:
            assert at in reachable, f"task {self.id}.{at} is queued and nobody will ever lease it"
            at = self.states.find(QUEUED, at + 1, self.position)


def apply_head(states: bytearray, head: Head) -> None:
    """Change an array of states as a row says."""
    indexes = head.indexes
    if head.sweep is not None:
        states[:] = changed(states, head.states if head.sweep == QUEUED else [QUEUED], head.sweep)
    elif isinstance(indexes, range):
        states[indexes.start : indexes.stop] = bytes(head.states) or bytes((DONE,)) * len(indexes)
    elif head.states:
        for index, state in zip(indexes, head.states, strict=True):
            states[index] = state
    else:
        for index in indexes:
            states[index] = DONE


def changed(states: bytearray, sources: list[int], state: int) -> bytearray:
    """An array of states in which all that were in one of `sources` are in another."""
    return states.translate(bytes(state if before in sources else before for before in range(256)))
