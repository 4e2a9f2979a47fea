"""Reading a journal that is being written: rows in portions, one task among many, whole batches only."""

import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from dcoord.core.records import OutcomeRecord, PayloadRecord, Record
from dcoord.journal import Journal, NotDoneError, Reader
from districomp.errors import JournalError
from districomp.model import CANCELLED, FAILED, QUEUED
from districomp.outcome import Outcome
from tests.patience import PATIENCE_S

from .journal_support import job, outcome, serials, statements_of

ALL_BYTES = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dcoord" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal.open(path)
    yield opened
    opened.close()


def test_going_through_a_jobs_tasks_unpacks_each_row_once(path: Path, journal: Journal) -> None:
    chunks = [PayloadRecord(1, first, [b"%d" % index for index in range(first, first + 100)]) for first in (0, 100)]
    journal.commit([*chunks, job(1, 200, numbers=None), *[outcome(1, s, list(range(s - 1, 200, 2))) for s in (1, 2)]])
    reader = Reader(path)
    statements = statements_of(reader._connection)
    for index in range(200):
        assert reader.item(1, index) == b"%d" % index
        assert reader.result(1, index) == b"rrrr"
    reading = [sql.split(" WHERE")[0] for sql in statements if sql.startswith(("SELECT items", "SELECT body"))]
    assert sorted(reading) == ["SELECT body FROM outcomes"] * 2 + ["SELECT items FROM payloads"] * 2
    reader.close()


def test_rows_come_in_portions_of_the_size_asked_for(journal: Journal) -> None:
    journal.commit([job(1, 100), job(2, 100), *[outcome(n, s, [s], size=1000) for s in range(1, 21) for n in (1, 2)]])
    size = len(journal.rows(1, 0, 1)[0][0])
    assert size > 1000
    for bytes_max in (0, 1, size - 1, size, 2 * size - 1):
        rows, last = journal.rows(1, 4, bytes_max)
        assert (serials(rows), last) == ([5], 5)
    rows, last = journal.rows(1, 4, 3 * size)
    assert (serials(rows), last) == ([5, 6, 7], 7)
    rows, last = journal.rows(1, 0, ALL_BYTES)
    assert (serials(rows), last) == (list(range(1, 21)), 20)
    assert journal.rows(1, 20, ALL_BYTES) == ([], 20)
    assert journal.rows(3, 7, ALL_BYTES) == ([], 7)


def test_a_row_of_any_size_comes_alone(journal: Journal) -> None:
    journal.commit([job(1, 9), outcome(1, 1, [0]), outcome(1, 2, [1], size=900_000), outcome(1, 3, [2])])
    assert [journal.rows(1, after, 1000)[1] for after in (0, 1, 2)] == [1, 2, 3]


def test_a_task_is_found_among_many_rows_in_any_order(path: Path, journal: Journal) -> None:
    order = [(index * 7919) % 3000 for index in range(3000)]
    batches: list[Record] = [outcome(1, s, order[s * 3 - 3 : s * 3]) for s in range(1, 1001)]
    retried = OutcomeRecord(Outcome(1, 1001, "w", [5], [FAILED], [2], ["exit"], [3]))
    journal.commit([job(1, 3000), *batches, retried])
    reader = Reader(path)
    for index in range(0, 3000, 13):
        assert [o.serial for o in reader.attempts(1, index)] == [order.index(index) // 3 + 1]
    assert [o.reasons for o in reader.attempts(1, 5)] == [["done"], ["exit"]]
    reader.close()


def test_a_missing_item_is_reported(path: Path, journal: Journal) -> None:
    journal.commit([PayloadRecord(1, 0, [b"a", b"b"]), PayloadRecord(1, 2, [b"c", b"d"]), job(1, 4, numbers=None)])
    with apsw.Connection(str(path)) as other:
        other.execute("DELETE FROM payloads WHERE key = (SELECT max(key) FROM payloads)")
    reader = Reader(path)
    assert reader.item(1, 1) == b"b"
    with pytest.raises(JournalError, match=r"is damaged: the item of task 1\.3 is missing"):
        reader.item(1, 3)
    reader.close()


def test_a_reader_does_not_make_a_journal(path: Path) -> None:
    with pytest.raises(JournalError, match="does not exist"):
        Reader(path)
    assert not path.exists()


def test_readers_see_whole_batches_while_it_writes(path: Path, journal: Journal) -> None:
    journal.commit([job(1, 100_000), job(2, 100_000)])
    total = 300
    problems: list[BaseException] = []

    def read() -> None:
        try:
            reader = Reader(path)
            after = 0
            while after < total:
                rows, last = reader.rows(1, after, 5000)
                assert serials(rows) == list(range(after + 1, last + 1))
                if last > after:
                    assert reader.result(2, last) == b"r" * 500  # of the same batch as job 1's row
                    assert reader.attempts(1, last)[0].serial == last
                after = last
            reader.close()
        except BaseException as problem:  # noqa: BLE001
            problems.append(problem)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for serial in range(1, total + 1):
        journal.commit([outcome(1, serial, [serial], 500), outcome(2, serial, [serial], 500)])
    for reader in readers:
        reader.join(timeout=PATIENCE_S)
    assert not problems
    assert not any(reader.is_alive() for reader in readers)


def test_a_reader_never_writes(path: Path, journal: Journal) -> None:
    reader = Reader(path)
    with pytest.raises(apsw.ReadOnlyError):
        reader._connection.execute("DELETE FROM meta")
    reader.close()
    reader.close()
    assert journal.restore().epoch == 1


def test_a_reader_works_when_no_coordinator_does(path: Path) -> None:
    journal = Journal.open(path)
    journal.commit([job(1, 5), outcome(1, 1, [3])])
    journal.close()
    reader = Reader(path)
    assert reader.result(1, 3) == b"rrrr"
    reader.close()


def test_a_retried_task_has_its_last_attempts_result(path: Path, journal: Journal) -> None:
    retried = OutcomeRecord(Outcome(1, 1, "w", [2], [QUEUED], [1], ["exit"], [3], results=[b"not this"]))
    journal.commit([job(1, 3), retried])
    reader = Reader(path)
    with pytest.raises(NotDoneError, match="it is queued or running"):
        reader.result(1, 2)
    done = OutcomeRecord(Outcome(1, 2, "w", [1, 2], attempts=[1, 2], results=[b"other", b"this"]))
    journal.commit([done])
    assert reader.result(1, 2) == b"this"
    assert [(o.attempts, o.reasons) for o in reader.attempts(1, 2)] == [([1], ["exit"]), ([2], ["done"])]
    reader.close()


def test_a_cancelled_jobs_queued_tasks_say_so(path: Path, journal: Journal) -> None:
    sweep = OutcomeRecord(Outcome(1, 2, "", [1], [FAILED], [1], ["exit"], sweep=CANCELLED))
    journal.commit([job(1, 3), outcome(1, 1, [0]), sweep])
    reader = Reader(path)
    assert reader.result(1, 0) == b"rrrr"
    for index, state in ((1, "failed"), (2, "cancelled")):
        with pytest.raises(NotDoneError, match=f"1.{index} has no result: it is {state}"):
            reader.result(1, index)
    reader.close()
