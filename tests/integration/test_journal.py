"""The journal on real files: everything committed comes back, after kill -9 and on a full disk too."""

import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import msgspec
import pytest
from hypothesis import given, settings

from dcoord import journal as journal_module
from dcoord.core.records import (
    DefinitionRecord,
    DropRecord,
    FrontierRecord,
    IdentityRecord,
    JobEndRecord,
    OutcomeRecord,
    PayloadRecord,
    Record,
    TokenRecord,
)
from dcoord.journal import Journal, NotDoneError, Reader, UnknownTaskError, pack_outcome
from districomp.errors import JournalError
from districomp.model import DONE, QUEUED, STATE_NAMES
from tests.patience import PATIENCE_S

from . import journal_child
from .journal_support import Model, histories, job, outcome, statements_of

CHILD = Path(__file__).with_name("journal_child.py")
ALL_BYTES = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dcoord" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal.open(path)
    yield opened
    opened.close()


# ---- what is committed comes back ----


@given(histories())
@settings(max_examples=50)
def test_everything_committed_is_restored(drawn: tuple[list[list[Record]], dict[int, list[int]]]) -> None:
    history, chunks = drawn
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        journal = Journal.open(path)
        for batch in history:
            journal.commit(batch)
            for record in batch:
                model.remember(record)
        check_restored(journal, model, chunks, epoch=1)
        check_reader(path, model, chunks)
        journal.close()
        again = Journal.open(path)
        check_restored(again, model, chunks, epoch=2)
        check_payloads(again, model, chunks)
        again.close()


def check_restored(journal: Journal, model: Model, chunks: dict[int, list[int]], epoch: int) -> None:
    restored = journal.restore()
    assert restored.epoch == epoch
    assert restored.jobs == model.restored_jobs(chunks, with_heads=True)
    assert restored.definitions == model.used_definitions()
    assert restored.workers == sorted(model.workers.values(), key=lambda record: record.worker)
    assert restored.tokens == sorted(model.tokens.values(), key=lambda record: (record.created, record.id))
    assert restored.identities == sorted(model.identities.values(), key=lambda record: (record.since, record.id))
    assert restored.last_job == model.last_job


def check_payloads(journal: Journal, model: Model, chunks: dict[int, list[int]]) -> None:
    for number, begins in chunks.items():
        items = [item for first in begins for item in journal.read_payload(number, first)]
        assert items == (model.items[number] if begins else [])
    for number in model.items.keys() - model.jobs.keys():
        with pytest.raises(LookupError):
            journal.read_payload(number, 0)


def check_reader(path: Path, model: Model, chunks: dict[int, list[int]]) -> None:
    reader = Reader(path)
    for expected in model.restored_jobs(chunks, with_heads=False):
        number, count = expected.record.job, expected.record.count
        assert reader.job(number) == expected
        assert reader.record(number) == expected.record
        outcomes = model.outcomes[number]
        assert reader.rows(number, 0, ALL_BYTES) == ([pack_outcome(o) for o in outcomes], len(outcomes))
        assert [list(head.indexes) for head in reader.heads(number)] == [o.indexes for o in outcomes]
        for index in range(count):
            check_task(reader, model, number, index)
        for index in (-1, count, count + 1, 1 << 40):
            assert reader.item(number, index) is None
            assert reader.attempts(number, index) == []
            with pytest.raises(UnknownTaskError):
                reader.result(number, index)
    assert reader.job(model.last_job + 1) is None
    assert reader.record(model.last_job + 1) is None
    assert reader.item(model.last_job + 1, 0) is None
    reader.close()


def check_task(reader: Reader, model: Model, number: int, index: int) -> None:
    state, result, ended = model.story(number, index)
    assert reader.item(number, index) == model.item(number, index)
    assert reader.state(number, index) == state
    assert [(o.serial, o.states[0]) for o in reader.attempts(number, index)] == ended
    if state == DONE:
        assert reader.result(number, index) == result
    else:
        with pytest.raises(NotDoneError) as caught:
            reader.result(number, index)
        assert caught.value.state == ("queued or running" if state == QUEUED else STATE_NAMES[state])


def test_the_epoch_grows_and_the_cluster_stays(path: Path) -> None:
    seen = []
    for _ in range(3):
        journal = Journal.open(path)
        restored = journal.restore()
        assert journal.restore().epoch == restored.epoch  # restoring is not starting
        seen.append((restored.epoch, restored.cluster))
        journal.close()
    cluster = seen[0][1]
    assert seen == [(1, cluster), (2, cluster), (3, cluster)]
    assert re.fullmatch("[a-z2-7]{26}", cluster)


def test_who_can_never_come_back_is_forgotten_and_nobody_else(journal: Journal) -> None:
    def token(name: str, expires: float) -> TokenRecord:
        return TokenRecord(name, b"h" * 32, "worker", 1.0, expires, None, 1, [])

    def identity(name: str, token: str, expires: float, *, revoked: bool = False) -> IdentityRecord:
        return IdentityRecord(name, "worker", name, token, [], 1.0, expires, revoked=revoked)

    tokens = [token("ended", 99.0), token("ended-in-use", 99.0), token("good", 101.0)]
    identities = [
        identity("gone", "ended", 99.0),
        identity("still-refused", "ended-in-use", 101.0, revoked=True),
        identity("here", "", 101.0),
    ]
    journal.commit([*tokens, *identities])
    journal.forget(100.0)
    restored = journal.restore()
    assert [one.id for one in restored.tokens] == ["ended-in-use", "good"]
    assert [one.id for one in restored.identities] == ["here", "still-refused"]


def test_a_job_number_of_a_dropped_or_unfinished_submission_is_not_used_again(path: Path) -> None:
    journal = Journal.open(path)
    journal.commit([job(3), PayloadRecord(8, 0, [b"x"]), DropRecord(8)])
    assert journal.restore().last_job == 8
    journal.commit([PayloadRecord(9, 0, [b"x"])])
    for _ in range(2):  # the second time its payload is gone
        journal.close()
        journal = Journal.open(path)
        assert journal.restore().last_job == 9
    journal.close()


def test_the_files_are_their_owners_alone(path: Path, journal: Journal) -> None:
    journal.commit([job(1)])
    assert path.parent.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert {"journal.db", "journal.db-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_commits_are_synchronous(journal: Journal) -> None:
    assert journal._connection.pragma("journal_mode") == "wal"
    assert journal._connection.pragma("synchronous") == 2  # FULL: the log is flushed at every commit


# ---- what it costs ----


def test_a_batch_is_one_statement_however_many_jobs_it_has(journal: Journal) -> None:
    statements = statements_of(journal._connection)
    journal.commit([record for n in range(1, 101) for record in whole_job(n)])
    assert len(statements) == 1
    statements.clear()
    journal.commit([record for n in range(101, 501) for record in whole_job(n)])
    assert len(statements) == 2 + -(-400 * 5 // journal_module.STATEMENT_ROWS_MAX)
    journal._connection.exec_trace = None
    assert len(journal.restore().jobs) == 500


def test_who_belongs_to_the_cluster_costs_no_statement_more(journal: Journal) -> None:
    statements = statements_of(journal._connection)
    tokens = [TokenRecord(f"t{n}", b"h" * 32, "worker", 1.0, 2.0, None, n, []) for n in range(100)]
    identities = [IdentityRecord(f"w{n}", "worker", "oak", "t1", ["lab"], 1.0, 2.0) for n in range(100)]
    journal.commit([job(1), *tokens, *identities, *tokens])
    assert len(statements) == 1
    journal._connection.exec_trace = None
    assert len(journal.restore().tokens) == len(journal.restore().identities) == 100


def whole_job(number: int) -> list[Record]:
    return [
        PayloadRecord(number, 0, [b"x"]),
        job(number, numbers=None),
        FrontierRecord(number, 1, 2.0),
        outcome(number, 1, [0]),
        JobEndRecord(number, "done", [0, 0, 1, 0, 0, 0], 3.0),
    ]


def test_a_restart_reads_no_results(path: Path, journal: Journal) -> None:
    journal.commit([job(1, 10), outcome(1, 1, [2, 1]), outcome(1, 2, [0]), *whole_job(2)])
    before = journal.restore()
    with apsw.Connection(str(path)) as other:
        other.execute("DELETE FROM outcomes; DELETE FROM heads WHERE job = 2")
    assert journal.restore() == before
    assert [restored.last_serial for restored in before.jobs] == [2, 1]


def test_the_log_does_not_grow_for_ever_beside_a_reader(path: Path, journal: Journal) -> None:
    journal.commit([job(1, 1000)])
    reader = Reader(path)
    log = path.with_name("journal.db-wal")
    written = largest = 0
    for serial in range(1, 101):
        journal.commit([outcome(1, serial, [serial], size=600_000)])
        written += 600_000
        reader.rows(1, serial - 1, 10)
        reader.heads(1)
        largest = max(largest, log.stat().st_size)
    assert written > 2 * largest
    reader.close()


def test_commits_overwrite_a_log_that_was_made_long_beforehand(path: Path, journal: Journal) -> None:
    log = path.with_name("journal.db-wal")
    journal.commit([job(1, 1000)])
    steps = 1
    while journal.lengthen_log():
        journal.commit([outcome(1, steps, [steps])])
        steps += 1
    length = log.stat().st_size
    assert length == journal_module.LOG_BYTES_FIRST
    assert steps >= length // journal_module.LENGTHEN_BYTES
    for serial in range(steps, 500):
        journal.commit([outcome(1, serial, [serial])])
    assert log.stat().st_size == length
    reader = Reader(path)
    assert reader.rows(1, 498, 10)[1] == 499
    reader.close()
    # As after a crash: by what is on the disk alone, zeros and all.
    copied = path.parent / "copied.db"
    copied.write_bytes(path.read_bytes())
    copied.with_name("copied.db-wal").write_bytes(log.read_bytes())
    after = Journal.open(copied)
    assert [head.serial for head in after.restore().jobs[0].heads] == list(range(1, 500))
    after.close()


def test_a_log_is_not_made_long_on_a_disk_that_is_nearly_full(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = path.with_name("journal.db-wal")
    length = log.stat().st_size
    monkeypatch.setattr(journal_module, "LENGTHEN_SPACE", 1 << 40)
    assert not journal.lengthen_log()
    assert log.stat().st_size == length


def test_a_log_that_cannot_be_made_longer_stays_as_it_was(path: Path, journal: Journal) -> None:
    log = path.with_name("journal.db-wal")
    journal.commit([job(1)])
    length = log.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + 5000, before[1]))
    try:
        assert not journal.lengthen_log()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.stat().st_size == length
    journal.commit([outcome(1, 1, [0])])
    assert [head.serial for head in journal.restore().jobs[0].heads] == [1]


# ---- faults ----


@pytest.mark.parametrize("batches", [1, 5, 20])
def test_kill_9_loses_no_commit_that_returned(path: Path, batches: int) -> None:
    with subprocess.Popen(
        [sys.executable, CHILD, "forever", path], stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(batches)]
        child.send_signal(signal.SIGKILL)
        said += [int(line) for line in child.stdout.read().splitlines()]
    journal = Journal.open(path)
    rows = [[head.serial for head in restored.heads] for restored in journal.restore().jobs]
    journal.close()
    assert rows[0] == rows[1], "half a batch was restored"
    expected = [r.outcome.serial for n in range(1, said[-1] + 2) for r in journal_child.batch(n, 0)[::2]]  # type: ignore[attr-defined]
    in_flight = len(journal_child.batch(said[-1] + 1, 0)) // 2
    assert rows[0] in (expected, expected[:-in_flight])


def test_a_full_disk_refuses_the_batch_and_heals(path: Path) -> None:
    said = run_child("full", path, 3_000_000)
    number, errors, full, first_row, healed = msgspec.json.decode(
        said, type=tuple[int, list[str], list[int], int, list[int]]
    )
    assert number >= 2
    assert len(errors) == 3  # the batch, the batch again, a probe
    assert all(f"writing failed in {path}: " in error and "free space" in error for error in errors)
    assert full == [last_serial_of(number)] * 2
    assert first_row == 1
    assert healed == [last_serial_of(number + 1)] * 2
    journal = Journal.open(path)
    restored = journal.restore()
    assert [restored_job.last_serial for restored_job in restored.jobs] == healed
    rows = [len(restored_job.heads) for restored_job in restored.jobs]
    assert rows == [sum(len(journal_child.batch(n, 0)) // 2 for n in range(1, number + 2))] * 2
    journal.close()


def test_closing_on_a_full_disk_keeps_what_was_committed(path: Path) -> None:
    number = msgspec.json.decode(run_child("close", path, 3_000_000), type=int)
    journal = Journal.open(path)
    assert [restored.last_serial for restored in journal.restore().jobs] == [last_serial_of(number)] * 2
    journal.close()


def last_serial_of(number: int) -> int:
    record = journal_child.batch(number, 0)[-1]
    assert isinstance(record, OutcomeRecord)
    return record.outcome.serial


def run_child(*arguments: object) -> bytes:
    return subprocess.run(
        [sys.executable, CHILD, *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        env=child_environment(),
        timeout=PATIENCE_S,
    ).stdout


def child_environment() -> dict[str, str]:
    daemons = str(Path(__file__).resolve().parents[2] / "daemons")
    return {**os.environ, "PYTHONPATH": daemons}


@pytest.mark.parametrize("frontiers", [0, 1500])
def test_what_the_journal_forbids_is_our_bug_and_leaves_nothing(journal: Journal, frontiers: int) -> None:
    journal.commit([job(1, 5), outcome(1, 1, [0])])
    more = [FrontierRecord(1, n, 1.0) for n in range(frontiers)]  # a batch of one statement, and one of several
    with pytest.raises(apsw.ConstraintError):
        journal.commit([outcome(1, 2, [1]), *more, outcome(1, 1, [2])])
    (restored,) = journal.restore().jobs
    assert [head.serial for head in restored.heads] == [1]
    journal.commit([outcome(1, 2, [1])])


def test_there_is_one_writer(path: Path, journal: Journal) -> None:
    with pytest.raises(JournalError, match="in use by another dcoord"):
        Journal.open(path)
    journal.commit([job(1)])
    journal.close()
    journal.close()
    again = Journal.open(path)
    assert len(again.restore().jobs) == 1
    again.close()


# ---- files that are no journal ----


def write_text(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)


def write_foreign(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE jobs (job)")
    other.close()


def write_newer(path: Path) -> None:
    Journal.open(path).close()
    with apsw.Connection(str(path)) as other:
        other.pragma("user_version", 7)


def write_torn(path: Path) -> None:
    Journal.open(path).close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_text, "is not a journal of dcoord; move it away"),
        (write_foreign, "is not a journal of dcoord; move it away"),
        (write_newer, "has version 7 of the journal, this dcoord reads version 2; install"),
        (write_torn, "is damaged"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    path: Path, write: Callable[[Path], None], says: str
) -> None:
    path.parent.mkdir()
    write(path)
    before = path.read_bytes()
    for open_it in (lambda: Journal.open(path).restore(), lambda: Reader(path).job(1)):
        with pytest.raises(JournalError, match=re.escape(str(path)) + ".*" + says):
            open_it()
    assert path.read_bytes() == before
    path.unlink()
    Journal.open(path).close()  # nothing of the refused one is held


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    journal = Journal.open(path)
    assert journal.restore().epoch == 1
    journal.close()


def test_a_damaged_page_is_reported_where_it_is_read(path: Path) -> None:
    journal = Journal.open(path)
    journal.commit([job(1, 5000), *[outcome(1, s, [s], size=3000) for s in range(1, 200)]])
    journal.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xff" * 8 * 4096)
    journal = Journal.open(path)
    with pytest.raises(JournalError, match=r"is damaged, reading failed: .*stop dcoord and put back a copy"):
        journal.rows(1, 0, ALL_BYTES)
    journal.close()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"opening failed in .*journal\.db"):
        Journal.open(tmp_path / "file" / "journal.db")


def test_there_is_space_and_it_can_write(journal: Journal) -> None:
    assert journal.free_bytes() > 0
    for _ in range(3):
        journal.probe()


def test_batches_are_in_order_across_statements(journal: Journal) -> None:
    many: list[Record] = [FrontierRecord(1, frontier, 1.0) for frontier in range(1, 1301)]
    journal.commit([DefinitionRecord("digest", "n", b"b"), job(1, 5000), *many])
    assert journal.restore().jobs[0].frontier == 1300
