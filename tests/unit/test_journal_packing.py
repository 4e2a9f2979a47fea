"""How records look as rows: every packing has its way back, and a task is found under its nodes."""

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from dcoord import journal_rows as rows_of
from dcoord.core.records import Head, JobRecord, OutcomeRecord
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, REASONS, Blob
from districomp.outcome import Outcome

INDEX_MAX = rows_of.LOW_MASK
INDEXES = st.integers(0, INDEX_MAX) | st.integers(0, 40)
HEAD_COLUMNS = slice(7, 11)
"""offsets, states, reasons, sweep in an outcome's row."""


def head_of(row: rows_of.Row) -> Head:
    """The head as a restart reads it: serial, first, count and the packed columns."""
    return rows_of.unpack_head((row[2], row[4], row[6], *row[HEAD_COLUMNS]))


@given(st.tuples(INDEXES, INDEXES).map(sorted), st.data())
@example([0, 0], None)
@example([0, INDEX_MAX], None)
@example([INDEX_MAX, INDEX_MAX], None)
@example([511, 512], None)
def test_every_range_over_an_index_is_kept_under_one_of_its_nodes(ends: list[int], data: st.DataObject | None) -> None:
    first, last = ends
    inside = [first, last] if data is None else [data.draw(st.integers(first, last)), first, last]
    node = rows_of.node(first, last)
    assert first + 1 <= node <= last + 1
    for index in inside:
        assert node in rows_of.nodes_over(index)


@given(st.integers(1, 5000))
def test_a_node_is_the_number_with_the_most_trailing_zeros(first: int) -> None:
    for last in (first, first + 1, first + 7, first + 300):
        best = max(range(first + 1, last + 2), key=lambda number: number & -number)
        assert rows_of.node(first, last) == best


def test_an_index_has_few_nodes() -> None:
    assert len(rows_of.nodes_over(INDEX_MAX)) == 33


@given(st.lists(INDEXES, min_size=1, max_size=30))
@example([0, INDEX_MAX])
@example([5, 5])
@example([3, 2, 1])
def test_indexes_come_back_in_their_order(indexes: list[int]) -> None:
    first, last = min(indexes), max(indexes)
    packed = rows_of.pack_offsets(indexes, first, last)
    assert list(rows_of.unpack_offsets(packed, first, len(indexes))) == indexes


def test_a_range_in_order_needs_no_list() -> None:
    assert rows_of.pack_offsets(range(1000, 2000), 1000, 1999) is None
    shuffled = [1001, 1000, *range(1002, 2000)]
    assert len(rows_of.pack_offsets(shuffled, 1000, 1999) or b"") == 2 * len(shuffled)


def test_offsets_are_little_endian_everywhere() -> None:
    assert rows_of.pack_offsets([258, 0], 0, 258) == b"\x02\x01\x00\x00"


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    indexes = draw(st.lists(INDEXES, max_size=8))
    n = len(indexes)
    states = draw(st.lists(st.sampled_from([QUEUED, DONE, FAILED, CANCELLED]), min_size=n, max_size=n))
    reasons = draw(st.lists(st.sampled_from(REASONS), min_size=n, max_size=n))
    return Outcome(
        job=draw(st.integers(1, 2**31 - 1)),
        serial=draw(st.integers(1, INDEX_MAX)),
        worker="w",
        indexes=indexes,
        states=states if draw(st.booleans()) else [],
        reasons=reasons if draw(st.booleans()) else [],
        sweep=draw(st.none() | st.just(CANCELLED)),
    )


@given(outcomes())
def test_the_head_of_a_row_says_what_the_outcome_says(outcome: Outcome) -> None:
    row = rows_of.row(OutcomeRecord(outcome))
    assert len(row) == rows_of.COLUMNS
    head = head_of(row)
    head.indexes = list(head.indexes)
    assert head == Head(outcome.serial, outcome.indexes, outcome.states, outcome.reasons, outcome.sweep)
    assert isinstance(row[11], bytes)
    assert rows_of.unpack_outcome(row[11]) == outcome
    assert row[11] == rows_of.pack_outcome(outcome) == msgspec.msgpack.encode(outcome)


def test_a_row_of_tasks_all_done_has_a_head_of_a_few_bytes() -> None:
    row = rows_of.row(OutcomeRecord(Outcome(1, 1, "w", list(range(4096)))))
    assert row[HEAD_COLUMNS] == (None, None, None, None)


def test_reasons_are_named_once() -> None:
    names = ["done"] * 500 + ["exit"] * 500
    row = rows_of.row(OutcomeRecord(Outcome(1, 1, "w", list(range(1000)), reasons=names)))
    assert isinstance(row[9], bytes)
    assert len(row[9]) < 1100
    assert head_of(row).reasons == names


@given(
    st.dictionaries(st.text(max_size=4), st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=4)),
    st.none() | st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_a_job_comes_back(
    params: dict[str, int | str | None], numbers: tuple[int, int] | None, max_fails: int | None
) -> None:
    job = JobRecord(7, "r", "u", "n", "digest", "name", params, 3, numbers, max_fails, 1.5)
    row = rows_of.row(job)
    assert rows_of.unpack_job(row[1:10]) == job


def test_attempts_are_picked_out_with_every_column() -> None:
    outcome = Outcome(
        3, 9, "w", [4, 8, 4], states=[QUEUED, DONE, DONE], attempts=[1, 1, 2], reasons=["exit", "done", "done"],
        exit_codes=[1, 0, 0], ended=[1.0, 2.0, 3.0], results=[None, b"eight", Blob(b"d" * 32, 70_000)],
    )  # fmt: skip
    first, second = rows_of.attempts_in(outcome, 4)
    assert (first.indexes, first.states, first.attempts, first.reasons) == ([4], [QUEUED], [1], ["exit"])
    assert (second.states, second.attempts, second.ended) == ([DONE], [2], [3.0])
    assert second.results == [Blob(b"d" * 32, 70_000)]
    assert rows_of.attempts_in(outcome, 5) == []
    assert (first.job, first.serial, first.worker) == (3, 9, "w")


def test_an_empty_column_means_its_default() -> None:
    (entry,) = rows_of.attempts_in(Outcome(1, 1, "w", [0]), 0)
    for column in entry.__struct_fields__[3:-1]:
        assert len(getattr(entry, column)) == 1, column
    assert (entry.states, entry.attempts, entry.reasons, entry.stderr, entry.results) == (
        [DONE], [1], ["done"], [b""], [None],
    )  # fmt: skip
