"""`python -m bench.journal`: what the journal commits a second, and how long a restart reads it.

Each commit rate twice: the main thread idle, and in a loop that never waits. The second is what a
coordinator under load does to its journal's thread: whenever a statement lets go of the
interpreter's lock, getting it back takes up to `sys.getswitchinterval()` (5 ms). The row-a-task
table shows what a statement a row costs then.
"""

import argparse
import datetime
import itertools
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw

from dcoord.core.records import FrontierRecord, JobEndRecord, JobRecord, OutcomeRecord, PayloadRecord, Record
from dcoord.journal import Journal
from districomp.outcome import Outcome

BATCHES = (256, 1024, 4096)
JOBS = (1, 256)
RESULT = b"a result of 24 bytes ..."
NOW = 1_800_000_000.0


def job(number: int, count: int) -> JobRecord:
    """A job over a range of numbers."""
    return JobRecord(number, f"r{number}", "me", "", "0" * 64, "bench", {}, count, (0, 1), None, NOW)


def outcome(number: int, serial: int, first: int, count: int) -> Outcome:
    """Tasks that are done, with what a worker reports of each."""
    return Outcome(
        job=number,
        serial=serial,
        worker="0123456789abcdef",
        indexes=list(range(first, first + count)),
        started=[NOW] * count,
        ended=[NOW] * count,
        cpu_s=[0.01] * count,
        results=[RESULT] * count,
    )


def batches(tasks: int, jobs: int) -> Iterator[list[Record]]:
    """Endless batches of `tasks` results that belong to `jobs` jobs."""
    each = tasks // jobs
    serial = 0
    while True:
        serial += 1
        yield [OutcomeRecord(outcome(number, serial, serial * each, each)) for number in range(1, jobs + 1)]


def whole_jobs(jobs: int) -> Iterator[list[Record]]:
    """Endless batches in which `jobs` jobs of one task are submitted, leased, done and ended."""
    number = 0
    while True:
        batch: list[Record] = []
        for _ in range(jobs):
            number += 1
            batch += [
                PayloadRecord(number, 0, [b"data"]),
                job(number, 1),
                FrontierRecord(number, 1, NOW),
                OutcomeRecord(outcome(number, 1, 0, 1)),
                JobEndRecord(number, "done", [0, 0, 1, 0, 0, 0], NOW),
            ]
        yield batch


def seconds_of(
    commit: Callable[[list[Record]], None], source: Iterator[list[Record]], busy: bool, limit_s: float
) -> float:
    """The median time of committing a batch in a thread of its own, the main thread idle or busy."""
    took: list[float] = []
    done = threading.Event()

    def loop() -> None:
        commit(next(source))
        end = time.perf_counter() + limit_s
        while time.perf_counter() < end:
            batch = next(source)
            start = time.perf_counter()
            commit(batch)
            took.append(time.perf_counter() - start)
        done.set()

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(loop)
        if busy:
            while not done.is_set():
                sum(range(1000))
        future.result()
    return statistics.median(took)


def report(what: str, tasks: int, rows: int, idle: float, busy: float) -> None:
    """One line of the commit table."""
    print(
        f"{what:<34} {idle * 1e3:9.2f} {rows / idle:11,.0f} {tasks / idle:11,.0f}"
        f" {busy * 1e3:9.2f} {rows / busy:11,.0f} {tasks / busy:11,.0f}"
    )


def measure_commits(folder: Path, limit_s: float) -> None:
    """Commit rates of the journal."""
    for jobs in JOBS:
        for tasks in BATCHES:
            title = f"{tasks} tasks of {jobs} job{'s' if jobs > 1 else ''}"
            measure_journal(folder, title, tasks, jobs, lambda: batches(tasks, jobs), limit_s)  # noqa: B023
    measure_journal(folder, "256 whole jobs of one task", 256, 256 * 5, lambda: whole_jobs(256), limit_s)


def measure_journal(  # noqa: PLR0917
    folder: Path, title: str, tasks: int, rows: int, source: Callable[[], Iterator[list[Record]]], limit_s: float
) -> None:
    """One kind of batch, the main thread idle, then busy."""
    medians = []
    for busy in (False, True):
        journal = Journal.open(folder / f"{title} {busy}" / "journal.db")
        medians.append(seconds_of(journal.commit, source(), busy, limit_s))
        journal.close()
    report(title, tasks, rows, *medians)


def measure_trap(folder: Path, limit_s: float) -> None:
    """The same tasks by `executemany`, a row each: what the journal must not do."""
    for tasks in BATCHES:
        medians = []
        for busy in (False, True):
            connection = apsw.Connection(str(folder / f"trap-{tasks}-{busy}.db"))
            for pragma in ("journal_mode = WAL", "synchronous = FULL"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.execute("CREATE TABLE results (id INTEGER PRIMARY KEY, result BLOB)")

            def commit(batch: list[Record], connection: apsw.Connection = connection, tasks: int = tasks) -> None:
                with connection:
                    connection.executemany("INSERT INTO results (result) VALUES (?)", ((RESULT,) for _ in range(tasks)))

            medians.append(seconds_of(commit, itertools.repeat([]), busy, limit_s))
            connection.close()
        report(f"{tasks} rows by executemany (not ours)", tasks, tasks, *medians)


def measure_restore(folder: Path) -> None:
    """How long opening and restoring takes, median of 3."""
    done = Journal.open(folder / "done.db")
    done.commit([job(1, 1_000_000)])
    for start in range(0, 1_000_000, 256):
        count = min(256, 1_000_000 - start)
        done.commit([OutcomeRecord(outcome(1, start // 256 + 1, start, count))])
    done.close()
    queued = Journal.open(folder / "queued.db")
    queued.commit([PayloadRecord(1, start, [b"a line of a file"] * 10_000) for start in range(0, 10_000_000, 10_000)])
    queued.commit([job(1, 10_000_000)])
    queued.close()
    ended = Journal.open(folder / "ended.db")
    whole = whole_jobs(1000)
    for _ in range(10):
        ended.commit(next(whole))
    ended.close()
    for what, name in (
        ("1,000,000 tasks done, job unfinished", "done"),
        ("10,000,000 tasks queued, with items", "queued"),
        ("10,000 ended jobs of one task", "ended"),
    ):
        took = []
        for _ in range(3):
            start_s = time.perf_counter()
            journal = Journal.open(folder / f"{name}.db")
            journal.restore()
            took.append(time.perf_counter() - start_s)
            journal.close()
        print(f"{what:<42} {statistics.median(took) * 1e3:9.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure (default 1)")
    parser.add_argument("--folder", type=Path, help="where the files go (default: the system's temporary folder)")
    arguments = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(f"{today}, {platform.machine()}, {os.cpu_count()} CPUs, {platform.platform()}")
    print(f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, WAL, synchronous=FULL\n")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        print(
            f"{'a commit of':<34} {'idle: ms':>9} {'rows/s':>11} {'tasks/s':>11} {'busy: ms':>9} {'rows/s':>11} {'tasks/s':>11}"
        )
        measure_commits(folder, arguments.seconds)
        measure_trap(folder, arguments.seconds)
        print("\nopen and restore (median of 3)")
        measure_restore(folder)


if __name__ == "__main__":
    main()
