"""A job: one byte of state a task, and the indices that can be leased, as ranges.

The only code that changes a task's state, and it looks at the transition table each time. Knows
nothing of workers, messages or the clock; `reports.py` and `place.py` decide what happens.
"""

from collections import deque
from collections.abc import Iterable

from dcoord.core.payload import Payloads
from dcoord.core.records import Head, JobRecord, RestoredJob
from dcoord.core.task import LEGAL, Tries
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, RUNNING, SKIPPED
from districomp.outcome import Outcome
from districomp.taskdef import Definition

# An ended job costs no arrays of its own; nobody writes to these.
_NO_STATES = bytearray()
_NO_INDICES: deque[int] = deque()

_TOOK_S_MAX = 1e9
_MEAN_WEIGHT = 0.2
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
        "mean_result_bytes",
        "mean_s",
        "payloads",
        "ready",
        "record",
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
        self.cursor = 0
        """No index at or above it was ever leased."""
        self.frontier = 0
        """No index at or above it may be leased before a FrontierRecord is written."""
        self.ready: deque[int] = deque()
        """Indices below the cursor that can be leased now; one whose task is not queued any more is skipped."""
        self.waiting: dict[int, float] = {}
        """Queued tasks that wait for their backoff, until when (Unix seconds)."""
        self.doubt: dict[int, None] = {}
        """Queued tasks that a worker may hold from before the coordinator's restart."""
        self.tries: dict[int, Tries] = {}
        self.serial = 0
        self.started: float | None = None
        self.ended: float | None = None
        self.state_at_end = ""
        self.mean_s: float | None = None
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
        return len(self.ready) + len(self.states) - self.cursor

    def attempt_of(self, index: int) -> int:
        """The number of the attempt that a lease given now is."""
        tries = self.tries.get(index)
        return 1 if tries is None else tries.attempts + 1

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

    def due(self, index: int) -> None:
        """A task's backoff has passed."""
        if index in self.waiting:
            del self.waiting[index]
            self.ready.append(index)

    def settle_doubt(self) -> list[int]:
        """Nobody holds these from before the restart: end the doubt and say which they are."""
        indexes = list(self.doubt)
        self.doubt.clear()
        return indexes

    def sweep(self, state: int) -> int:
        """Every queued task takes a final state, at memory speed; how many did."""
        assert (QUEUED, state) in LEGAL
        swept = self.counts[QUEUED]
        self.states = self.states.replace(bytes((QUEUED,)), bytes((state,)))
        self.counts[QUEUED] = 0
        self.counts[state] += swept
        self.cursor = len(self.states)
        self.ready.clear()
        self.waiting.clear()
        self.doubt.clear()
        return swept

    def requeue(self, states: list[int]) -> int:
        """Tasks in these final states are queued again, with nothing behind them; how many are."""
        requeued = 0
        for state in states:
            assert (state, QUEUED) in LEGAL
            at = self.states.find(state, 0, self.cursor)
            while at >= 0:
                self.ready.append(at)
                at = self.states.find(state, at + 1, self.cursor)
            self.states = self.states.replace(bytes((state,)), bytes((QUEUED,)))
            requeued += self.counts[state]
            self.counts[QUEUED] += self.counts[state]
            self.counts[state] = 0
        return requeued

    def take(self, limit: int) -> list[int]:
        """Up to `limit` tasks that can be leased, now running; their items, if any, are those of one chunk in memory.

        Empty when there is none, or when the items must be read first (`wanted_payload`).
        """
        if self.ready:
            return self._take_ready(limit)
        indexes: list[int] = []
        # After a restart there may be tasks above the cursor that were cancelled one by one: a stretch can be empty.
        while not indexes and self.cursor < len(self.states):
            start, end = self.cursor, min(self.cursor + limit, len(self.states))
            if self.payloads is not None:
                if self.payloads.loaded(start) is None:
                    break
                end = min(end, self.payloads.chunk_of(start)[1])
            indexes = self._take_range(start, end)
            self.cursor = end
        return indexes

    def _take_range(self, start: int, end: int) -> list[int]:
        if self.states.count(QUEUED, start, end) == end - start:
            self.states[start:end] = bytes((RUNNING,)) * (end - start)
            self.counts[QUEUED] -= end - start
            self.counts[RUNNING] += end - start
            return list(range(start, end))
        indexes = [index for index in range(start, end) if self.states[index] == QUEUED]
        for index in indexes:
            self.move(index, RUNNING)
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
                self.doubt.pop(index, None)
                indexes.append(index)
            self.ready.popleft()
        if not indexes and not self.ready and self.cursor < len(self.states):
            return self.take(limit)
        return indexes

    def wanted_payload(self) -> int | None:
        """The chunk (its first index) to read before `take` can go on; None if there is none or it is on its way."""
        if self.payloads is None:
            return None
        while self.ready and self.states[self.ready[0]] != QUEUED:
            self.ready.popleft()
        return self.payloads.want(self.ready[0] if self.ready else self.cursor)

    def has_leasable(self) -> bool:
        """Whether a task could be leased now, exactly; looks at the array."""
        if self.states.find(QUEUED, self.cursor) >= 0:
            return True
        return any(self.states[index] == QUEUED and index not in self.waiting for index in self.ready)

    def end(self, state: str, at: float) -> None:
        """No task is queued or running any more: keep what people ask for, drop what only leasing needs."""
        self.state_at_end = state
        self.ended = at
        self.states = _NO_STATES
        self.cursor = 0
        self.ready, self.waiting, self.doubt, self.tries, self.payloads = _NO_INDICES, {}, {}, {}, None

    # ---- figures ----

    def learn(self, outcome: Outcome) -> None:
        """Take a batch of ended attempts into the running means."""
        count = len(outcome.indexes)
        if outcome.started and outcome.ended:
            took = [e - s for s, e in zip(outcome.started, outcome.ended, strict=True) if s is not None]
            if took:
                # Bounded, because a worker may say anything: infinity would make the mean no number.
                mean = min(_TOOK_S_MAX, max(0.0, sum(took) / len(took)))
                self.mean_s = mean if self.mean_s is None else self.mean_s + _MEAN_WEIGHT * (mean - self.mean_s)
        if outcome.results:
            size = sum(len(r) if isinstance(r, bytes) else 128 for r in outcome.results)
            self.mean_result_bytes += _MEAN_WEIGHT * (size / count - self.mean_result_bytes)

    # ---- after a restart ----

    def restore(self, restored: RestoredJob) -> None:
        """Take what the journal knows of a job that has not ended."""
        for head in restored.heads:
            self._apply(head)
        self.frontier = self.cursor = restored.frontier
        self.started = restored.started
        self.serial = restored.last_serial
        self.counts = [self.states.count(state) for state in range(6)]
        at = self.states.find(QUEUED, 0, self.frontier)
        while at >= 0:
            self.doubt[at] = None
            at = self.states.find(QUEUED, at + 1, self.frontier)

    def _apply(self, head: Head) -> None:
        if head.sweep is not None:
            apply_sweep(self.states, head)
            return
        states = self.states
        if not head.states:
            for index in head.indexes:
                states[index] = DONE
            return
        for place, (index, state) in enumerate(zip(head.indexes, head.states, strict=True)):
            states[index] = state
            if state == QUEUED:
                self.tries.setdefault(index, Tries()).count(head.reasons[place])

    def check(self) -> None:
        """Every invariant of a job; AssertionError names the broken one."""
        if self.is_ended:
            assert self.counts[QUEUED] == self.counts[RUNNING] == 0
            assert sum(self.counts) == self.record.count
            return
        assert [self.states.count(s) for s in range(6)] == self.counts, f"job {self.id}: counts are off"
        assert self.cursor <= self.record.count
        assert self.states.find(RUNNING, self.cursor) < 0, f"job {self.id}: a task above the cursor runs"
        reachable = {*self.ready, *self.waiting, *self.doubt}
        at = self.states.find(QUEUED, 0, self.cursor)
        while at >= 0:
            assert at in reachable, f"task {self.id}.{at} is queued and nobody will ever lease it"
            at = self.states.find(QUEUED, at + 1, self.cursor)


def apply_sweep(states: bytearray, head: Head) -> None:
    """Change an array of states as a row with a sweep says: what is queued took a state, or (0) was queued again."""
    assert head.sweep is not None
    sources = head.states if head.sweep == QUEUED else [QUEUED]
    for source in sources:
        states[:] = states.replace(bytes((source,)), bytes((head.sweep,)))
