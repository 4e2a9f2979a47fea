"""Commits on the spot and in the thread: the same on disk, one at a time, and nobody goes unheard for long."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from dcoord import journal_thread
from dcoord.core.records import Record, WorkerRecord
from dcoord.journal import Journal
from dcoord.journal_thread import JournalThread
from tests.patience import PATIENCE_S


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.open(tmp_path / "journal.db")
    yield made
    made.close()


@pytest.fixture
def thread() -> Iterator[JournalThread]:
    made = JournalThread()
    yield made
    made.close()


def named(name: str) -> list[Record]:
    return [WorkerRecord(name, name, True, 0.0)]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every disk count as quick."""
    monkeypatch.setattr(journal_thread, "ON_THE_SPOT_S", 3600.0)


def test_small_batches_are_written_on_the_spot_and_large_ones_in_the_thread(
    journal: Journal, thread: JournalThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    where: list[threading.Thread] = []
    commit = journal.commit

    def seen(records: list[Record]) -> None:
        where.append(threading.current_thread())
        commit(records)

    monkeypatch.setattr(journal, "commit", seen)
    many = [record for number in range(100) for record in named(f"w{number}")]

    async def write() -> None:
        await thread.commit(journal, named("alone"))
        await thread.commit(journal, many)

    asyncio.run(write())
    assert [one is threading.main_thread() for one in where] == [True, False]
    assert len(journal.restore().workers) == 101


def test_nothing_is_written_on_the_spot_while_the_thread_has_the_journal(
    journal: Journal, thread: JournalThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    begun, go_on = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)

    async def write() -> None:
        occupied = asyncio.create_task(thread.run(occupy))
        await asyncio.to_thread(begun.wait)
        writing = asyncio.create_task(thread.commit(journal, named("w1")))
        await asyncio.sleep(0)
        assert not writing.done()
        go_on.set()
        await writing
        await occupied

    asyncio.run(write())
    assert [worker.name for worker in journal.restore().workers] == ["w1"]


def test_what_arrived_during_a_long_commit_is_heard_before_it_returns(
    tmp_path: Path, journal: Journal, thread: JournalThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's heartbeat that waits in its socket must not come too late for the timers."""
    quick(monkeypatch)
    other = apsw.Connection(str(tmp_path / "journal.db"))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    heard: list[bytes] = []

    def release() -> None:
        theirs.send(b"beat")
        other.execute("COMMIT")

    commit = journal.commit
    timer = threading.Timer(journal_thread.HELD_UP_S * 2, release)

    def held_up(records: list[Record]) -> None:
        timer.start()
        commit(records)

    monkeypatch.setattr(journal, "commit", held_up)

    async def write() -> None:
        asyncio.get_running_loop().add_reader(ours, lambda: heard.append(ours.recv(10)))
        other.execute("BEGIN IMMEDIATE")
        await thread.commit(journal, named("w1"))
        assert heard == [b"beat"]
        timer.join()

    with contextlib.closing(other), ours, theirs:
        asyncio.run(write())
