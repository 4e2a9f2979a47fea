"""A job's array of states against a model that keeps a set of everything, and what it costs when there are millions."""

import tracemalloc
from collections.abc import Iterator

from hypothesis import example, given
from hypothesis import strategies as st

from dcoord.core.doubt import Doubt
from dcoord.core.job import Job
from dcoord.core.records import Head, JobRecord, RestoredJob
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, RUNNING
from tests.unit.corelab import PLAIN

COUNT = 24
MANY = 1_000_000


def record(count: int) -> JobRecord:
    return JobRecord(1, "", "", "", PLAIN.digest, PLAIN.name, {}, count, (0, 1), None, 0.0)


def job_of(count: int) -> Job:
    return Job(record(count), PLAIN, [])


def restored(job: Job, heads: list[Head]) -> Job:
    """The same job after a restart, with what was written down of it."""
    again = job_of(job.record.count)
    again.restore(RestoredJob(job.record, job.frontier, 0.0, [], heads, len(heads), None))
    return again


class Story:
    """Steps drawn by hypothesis, on a job and on what its journal would hold."""

    def __init__(self) -> None:
        self.job = job_of(COUNT)
        self.heads: list[Head] = []
        self.may_take: set[int] = set(range(COUNT))
        """The tasks that a lease may be given for."""

    def step(self, name: str, number: int) -> None:
        getattr(self, name)(number)
        self.job.check()
        assert self.job.counts == [self.job.states.count(state) for state in range(6)]

    def running(self) -> list[int]:
        return [index for index, state in enumerate(self.job.states) if state == RUNNING]

    def write(self, indexes: list[int] | range, states: list[int], sweep: int | None = None) -> None:
        self.heads.append(Head(len(self.heads) + 1, indexes, states, ["exit"] * len(indexes), sweep))

    def take(self, limit: int) -> None:
        before = self.job.leasable
        taken = self.job.take(limit)
        assert len(taken) == len(set(taken)) <= limit <= COUNT
        assert len(taken) <= before
        assert self.may_take.issuperset(taken)
        assert bool(taken) == bool(self.may_take)
        self.may_take.difference_update(taken)
        self.job.frontier = max(self.job.frontier, self.job.cursor)

    def done(self, number: int) -> None:
        indexes = self.running()[:number]
        if indexes:
            self.job.finish(indexes, DONE)
            self.write(indexes, [])
            for index in indexes:
                self.job.tries.pop(index, None)

    def fail(self, number: int) -> None:
        for index in self.running()[:number]:
            self.job.move(index, FAILED)
            self.job.tries.pop(index, None)
            self.write([index], [FAILED])

    def give_back(self, number: int) -> None:
        for index in self.running()[:number]:
            self.job.give_back(index)
            self.may_take.add(index)

    def postpone(self, number: int) -> None:
        for index in self.running()[:number]:
            self.job.count_try(index, "exit")
            self.job.postpone(index, 9.0)
            self.write([index], [QUEUED])

    def due(self, number: int) -> None:
        for index in list(self.job.waiting)[:number]:
            self.job.due([index], 9.0)
            self.may_take.add(index)

    def cancel_one(self, number: int) -> None:
        index = number % COUNT
        if self.job.states[index] == QUEUED:
            self.job.move(index, CANCELLED)
            self.job.waiting.pop(index, None)
            self.job.doubt.discard(index)
            self.may_take.discard(index)
            self.write([index], [CANCELLED])

    def sweep(self, _number: int) -> None:
        self.job.sweep(CANCELLED)
        self.may_take.clear()
        self.write([], [], sweep=CANCELLED)

    def requeue(self, number: int) -> None:
        states = [FAILED] if number % 2 else [FAILED, CANCELLED]
        chosen = {index for index, state in enumerate(self.job.states) if state in states}
        assert self.job.requeue(states) == len(chosen)
        self.may_take |= {index for index in chosen if index >= self.job.doubt.end}
        self.write([], states, sweep=QUEUED)

    def restart(self, _number: int) -> None:
        before = self.job
        self.job = restored(before, self.heads)
        assert list(self.job.states) == [QUEUED if state == RUNNING else state for state in before.states]
        told = {index: tries for index, tries in before.tries.items() if before.states[index] in (QUEUED, RUNNING)}
        assert self.job.tries == told
        queued = {index for index, state in enumerate(self.job.states) if state == QUEUED}
        assert set(self.job.doubt) == {index for index in queued if index < before.frontier}
        self.may_take = queued - set(self.job.doubt)

    def adopt(self, number: int) -> None:
        for index in list(self.job.doubt)[:number]:
            self.job.move(index, RUNNING)
            self.job.doubt.discard(index)
            assert index not in self.job.doubt

    def settle(self, _number: int) -> None:
        self.job.settle_doubt()
        assert not list(self.job.doubt)
        queued = {index for index, state in enumerate(self.job.states) if state == QUEUED}
        self.may_take = queued - set(self.job.waiting)


STEPS = [name for name in vars(Story) if name not in ("step", "running", "write") and not name.startswith("_")]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, COUNT)), max_size=30))
@example([("take", 5), ("fail", 2), ("restart", 1), ("requeue", 1), ("take", 9)])
def test_what_can_be_leased_is_leased_once_and_nothing_else(steps: list[tuple[str, int]]) -> None:
    story = Story()
    for name, number in steps:
        story.step(name, number)
    story.step("due", COUNT)
    story.step("settle", 1)
    while story.may_take:
        story.step("take", 5)
    assert QUEUED not in story.job.states


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 40), st.sets(st.integers(-3, 45)))
def test_doubt_is_the_set_of_what_is_queued_below_its_end(states: list[int], end: int, known: set[int]) -> None:
    doubt = Doubt()
    doubt.begin(bytearray(states), end)
    expected = [index for index, state in enumerate(states[:end]) if state == QUEUED]
    assert list(doubt) == expected
    assert [index for index in range(-3, 50) if index in doubt] == expected
    for index in sorted(known):
        doubt.discard(index)
    assert list(doubt) == [index for index in expected if index not in known]
    doubt.clear()
    assert list(doubt) == []
    assert doubt.end == 0


# ---- what millions cost ----


def cost_of(steps: Iterator[object]) -> int:
    """The most memory that was taken meanwhile, in bytes."""
    tracemalloc.start()
    try:
        for _ in steps:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_millions_that_are_queued_again_cost_no_object_each() -> None:
    job = job_of(MANY)

    def steps() -> Iterator[object]:
        yield job.take(8)
        yield job.sweep(CANCELLED)
        yield job.requeue([CANCELLED])
        yield job.take(8)

    assert cost_of(steps()) < 4 * MANY
    assert job.counts[QUEUED] == MANY - 8 - 8
    assert job.cursor == 16  # what was never leased still was not, whatever became of it


def test_millions_in_doubt_cost_no_object_each() -> None:
    job = job_of(MANY)
    job.frontier = MANY

    def steps() -> Iterator[object]:
        again = restored(job, [])
        yield again
        assert MANY - 1 in again.doubt
        again.settle_doubt()
        yield again.take(8)

    assert cost_of(steps()) < 6 * MANY


def test_millions_that_are_done_in_order_are_restored_without_an_object_each() -> None:
    job = job_of(MANY)
    job.frontier = MANY
    heads = [Head(1, range(MANY - 1), [], [], None)]

    def steps() -> Iterator[object]:
        again = restored(job, heads)
        assert list(again.doubt) == [MANY - 1]
        yield again

    assert cost_of(steps()) < 6 * MANY
