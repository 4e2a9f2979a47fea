"""Which of a job's rows stand, when people cancel it and queue tasks again: against a model of its states."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from districomp.client_results import Ledger, Requeued, TaskRecord, stderr_of
from districomp.client_shelf import in_task_order
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, SKIPPED
from districomp.outcome import Outcome

TASKS = 6

Step = tuple[str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["done", "failed", "cancelled", "cancel", "retry", "retry failed"]), st.integers(0, TASKS)
    ),
    max_size=20,
)


class Life:
    """A job as a coordinator would keep it: rows, and the state that each task is in."""

    def __init__(self) -> None:
        self.states = [QUEUED] * TASKS
        self.rows: list[bytes] = []

    def do(self, step: Step) -> None:
        what, index = step
        if what == "cancel":
            self._move([QUEUED], CANCELLED)
            self._write(Outcome(1, 0, "", [], sweep=CANCELLED))
        elif what.startswith("retry"):
            states = [FAILED] if what == "retry failed" else [FAILED, CANCELLED, SKIPPED]
            self._move(states, QUEUED)
            self._write(Outcome(1, 0, "", [], states=states, sweep=QUEUED))
        elif index < TASKS and self.states[index] == QUEUED:
            self.states[index] = {"done": DONE, "failed": FAILED, "cancelled": CANCELLED}[what]
            self._write(Outcome(1, 0, "w", [index], [self.states[index]], [1], [what]))

    def _move(self, old: list[int], new: int) -> None:
        self.states = [new if state in old else state for state in self.states]

    def _write(self, outcome: Outcome) -> None:
        self.rows.append(msgspec.msgpack.encode(msgspec.structs.replace(outcome, serial=len(self.rows) + 1)))

    @property
    def ended(self) -> list[tuple[int, int]]:
        return [(index, state) for index, state in enumerate(self.states) if state != QUEUED]


def taken(ledger: Ledger, rows: list[bytes]) -> list[TaskRecord | Requeued]:
    """Rows read one by one, as they come from a job that runs."""
    return [entry for row in rows for entry in ledger.take(ledger.read(row))]


@given(steps)
def test_known_whole_each_task_is_told_once_in_its_last_state(history: list[Step]) -> None:
    life = Life()
    for step in history:
        life.do(step)
    ledger = Ledger(1, TASKS)
    told = [entry for outcome in [ledger.read(row) for row in life.rows] for entry in ledger.take(outcome)]
    records = [entry for entry in [*told, *ledger.swept()] if isinstance(entry, TaskRecord)]
    assert sorted((record.index, record.state) for record in records) == life.ended


@given(steps)
def test_as_it_comes_the_last_state_counts_until_it_is_given_out(history: list[Step]) -> None:
    life = Life()
    for what, index in history:
        if index:  # task 0 holds the others back
            life.do((what, index))
    ledger = Ledger(1, TASKS)
    shown = [(record.index, record.state) for record in in_task_order([*taken(ledger, life.rows), *ledger.swept()])]
    assert shown == life.ended


def test_the_last_record_of_a_task_counts_until_it_is_given_out() -> None:
    def record(index: int, payload: bytes) -> TaskRecord:
        return TaskRecord(1, index, DONE, payload=payload)

    records = [record(1, b"a"), record(1, b"b"), record(0, b"c"), record(0, b"d"), record(1, b"e")]
    assert [(entry.index, entry.payload) for entry in in_task_order(records)] == [(0, b"c"), (1, b"b")]


def test_standard_error_of_a_row() -> None:
    row = msgspec.msgpack.encode(
        Outcome(1, 1, "w", [4, 5], [QUEUED, CANCELLED], [1, 0], ["exit", "cancelled"], stderr=[b"\xff", b""])
    )
    assert [stderr_of(row, index) for index in (4, 5, 6)] == [b"\xff", None, None]
