"""Results put in task order, in bounded memory: the same whatever had to be written to a file meanwhile."""

import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from districomp import client_shelf
from districomp.client_results import Requeued, TaskRecord
from districomp.client_shelf import in_task_order
from districomp.model import CANCELLED, DONE, FAILED

TASKS = 9
MANY = 60_000
LITTLE = 1024 * 1024

entries = st.one_of(
    st.tuples(st.integers(0, TASKS - 1), st.sampled_from([DONE, FAILED, CANCELLED]), st.binary(max_size=9)),
    st.lists(st.sampled_from([FAILED, CANCELLED]), min_size=1, max_size=2, unique=True),
)


def expected(given_ones: Iterable[TaskRecord | Requeued]) -> list[TaskRecord]:
    """The same, by a dictionary."""
    waiting: dict[int, TaskRecord] = {}
    out: list[TaskRecord] = []
    for entry in given_ones:
        if isinstance(entry, Requeued):
            waiting = {index: record for index, record in waiting.items() if record.state not in entry.states}
        elif entry.index >= len(out):
            waiting[entry.index] = entry
            while len(out) in waiting:
                out.append(waiting.pop(len(out)))
    return out + [waiting[index] for index in sorted(waiting)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, max_size=30), st.sampled_from([0, 310, 700, 1500, 1 << 20]))
def test_the_order_is_the_same_however_little_is_held(
    monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[int, int, bytes] | list[int]], held_bytes: int
) -> None:
    monkeypatch.setattr(client_shelf, "SHELF_BYTES", held_bytes)
    given_ones: list[TaskRecord | Requeued] = [
        Requeued(entry) if isinstance(entry, list) else TaskRecord(1, entry[0], entry[1], stderr=entry[2])
        for entry in drawn
    ]
    assert list(in_task_order(given_ones)) == expected(given_ones)


def test_what_waits_for_the_first_task_takes_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_shelf, "SHELF_BYTES", LITTLE)

    def records() -> Iterator[TaskRecord]:
        for index in [*range(MANY - 1, MANY // 2, -1), *range(1, MANY // 2 + 1), 0]:
            yield TaskRecord(1, index, DONE, payload=b"%d" % index)

    tracemalloc.start()
    try:
        for place, record in enumerate(in_task_order(records())):
            assert (record.index, record.payload) == (place, b"%d" % place)
        assert place == MANY - 1
        assert tracemalloc.get_traced_memory()[1] < 4 * LITTLE  # as objects they would be 18 MB
    finally:
        tracemalloc.stop()
