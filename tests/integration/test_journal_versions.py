"""Journals of earlier versions: a coordinator makes them its own, and they lose nothing."""

from pathlib import Path

import apsw
import pytest

from dcoord import journal as journal_module
from dcoord.core.records import JobEndRecord, TokenRecord, WorkerRecord
from dcoord.journal import Journal, Reader
from districomp.errors import JournalError

OLD = Path(__file__).with_name("journal_version_1.sql")
"""What a coordinator of version 1 wrote."""
TOKEN = TokenRecord("0a1b2c3d", b"h" * 32, "worker", 5.0, 6.0, 1, 0, ["lab"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dcoord" / "journal.db"


def write_version_1(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    old = apsw.Connection(str(path))
    old.pragma("journal_mode", "wal")
    old.execute(OLD.read_text())
    old.close()


def tables_of(path: Path) -> list[tuple[object, ...]]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    finally:
        connection.close()


def test_a_file_of_version_1_becomes_one_of_ours_and_keeps_all_it_had(path: Path, tmp_path: Path) -> None:
    write_version_1(path)
    for epoch in (2, 3):
        journal = Journal.open(path)
        restored = journal.restore()
        assert (restored.epoch, restored.cluster) == (epoch, "nhvyof3yu2miu5s7ylmdyd3xa4")
        assert [(r.record.name, r.frontier, r.chunks, r.last_serial) for r in restored.jobs] == [
            ("first", 2, [0], 1),
            ("", 0, [], 1),
        ]
        assert restored.jobs[1].end == JobEndRecord(2, "done", [0, 0, 1, 0, 0, 0], 1004.0)
        assert restored.workers == [WorkerRecord("w1", "oak", True, 1000.5)]
        assert restored.definitions == {"digest": b"body"}
        assert journal.read_payload(1, 0) == [b"a", b"b", b"c"]
        assert restored.tokens == ([] if epoch == 2 else [TOKEN])
        journal.commit([TOKEN])
        journal.close()
    reader = Reader(path)
    assert reader.result(1, 0) == b"A"
    assert reader.result(2, 0) == b"five"
    reader.close()
    Journal.open(tmp_path / "new.db").close()
    assert tables_of(path) == tables_of(tmp_path / "new.db")


def test_only_a_coordinator_makes_a_new_version(path: Path) -> None:
    write_version_1(path)
    with pytest.raises(JournalError, match="has version 1 of the journal; start this dcoord, which makes it 2"):
        Reader(path)
    Journal.open(path).close()
    Reader(path).close()


def test_a_new_version_comes_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version_1(path)
    before = tables_of(path)
    schemas = (*journal_module._SCHEMAS, "schema.sql")  # whose tables are there already: fails after the second
    with monkeypatch.context() as patch, pytest.raises(JournalError, match="opening failed"):
        patch.setattr(journal_module, "_SCHEMAS", schemas)
        Journal.open(path)
    assert tables_of(path) == before
    journal = Journal.open(path)
    assert journal.restore().epoch == 2  # the start that failed was none
    journal.close()
