"""`python -m bench.arrays`: what one submission of millions of tasks costs, and in whose memory.

A coordinator on loopback, by its control socket; no worker, so that everything stays queued (with `through`: two
workers, and the job runs to its last result). The submitter is a process
of its own (`dctl submit`), whose highest resident memory the system reports when it ends. Memory is resident, in
MB (10^6 bytes); bytes a task are the coordinator's growth over what it had before the submission, by the number of tasks.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from bench.machine import heading, rss_mb
from bench.results import percentile
from demo.cluster import Cluster, script
from districomp.client import Client

DEFINITIONS: Final = {
    "noop": "version: 1\nstream: [cat]\n",
    "grid": "version: 1\ncommand: [/bin/true, '{a}', '{b}']\nparams: {a: {type: int}, b: {type: int}}\n",
}
LINE_BYTES: Final = 100
LAUNCHER: Final = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[2:], stdout=int(sys.argv[1]))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small process between, because the system counts what a process had before its exec: a copy of whoever started it."""
SAMPLE_S: Final = 0.02
CALL_PAUSE_S: Final = 0.01
WRITE_LINES: Final = 10_000


class Figures(msgspec.Struct):
    """What one submission cost. Calls: a `status` by another client meanwhile, milliseconds."""

    form: str
    tasks: int
    seconds: float
    client_mb: float
    before_mb: float
    highest_mb: float
    after_mb: float
    journal_mb: float
    calls_ms: list[float]

    def row(self) -> str:
        """A line of the table."""
        each = 1e6 * (self.after_mb - self.before_mb) / self.tasks
        return (
            f"| {self.form} | {self.seconds:.2f} | {self.client_mb:.0f} | {self.before_mb:.0f} / {self.highest_mb:.0f} / "
            f"{self.after_mb:.0f} | {each:.1f} | {self.journal_mb:,.0f} | {spread(self.calls_ms)} |"
        )


def spread(calls_ms: list[float]) -> str:
    """The 99th percentile and the highest."""
    return f"{percentile(calls_ms, 0.99):.1f} / {max(calls_ms):.1f}" if calls_ms else "-"


class Watcher:
    """Beside a submission: the highest memory of some processes, and what a call of another client takes."""

    def __init__(self, cluster: Cluster, *pids: int) -> None:
        self.highest_mb = [rss_mb(pid) for pid in pids]
        self.calls_ms: list[float] = []
        self._cluster = cluster
        self._pids = pids
        self._done = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._sample, self._ask)]

    def __enter__(self) -> "Watcher":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.highest_mb = [max(most, rss_mb(pid)) for most, pid in zip(self.highest_mb, self._pids, strict=True)]

    def _ask(self) -> None:
        with Client(str(self._cluster.runtime / "control.sock")) as client:
            while not self._done.wait(CALL_PAUSE_S):
                start = time.perf_counter()
                client.status()
                self.calls_ms.append(1000 * (time.perf_counter() - start))


def journal_mb(cluster: Cluster) -> float:
    """The journal and its log."""
    folder = cluster.folder / "coordinator" / "state" / "dcoord"
    return sum(file.stat().st_size for file in folder.glob("journal*")) / 1e6


def submit(
    cluster: Cluster, arguments: list[str], stdin: IO[bytes] | None = None, output: Path | None = None
) -> tuple[int, float, float]:
    """Run `dctl submit`: the job's number (0 if it goes to `output`), the seconds that it took, and its highest resident memory in MB."""
    printed = output or cluster.folder / "printed"
    with printed.open("wb") as file:
        launched = [sys.executable, "-c", LAUNCHER, str(file.fileno()), script("dctl"), "submit", *arguments]
        done = subprocess.run(
            launched, env=cluster.environment, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE,
            pass_fds=[file.fileno()], check=True,
        )  # fmt: skip
    seconds, client_kib = done.stdout.split()
    number = 0 if output else int(printed.read_bytes())
    return number, float(seconds), int(client_kib) * 1024 / 1e6


def measure(cluster: Cluster, form: str, tasks: int, arguments: list[str], stdin: IO[bytes] | None = None) -> Figures:
    """Submit by `dctl`, and look at everybody meanwhile."""
    assert cluster.coordinator is not None
    pid = cluster.coordinator.pid
    before_mb, disk_before_mb = rss_mb(pid), journal_mb(cluster)
    with Watcher(cluster, pid) as watcher:
        _, seconds, client_mb = submit(cluster, arguments, stdin)
    return Figures(
        form, tasks, seconds, client_mb, before_mb, max(*watcher.highest_mb, rss_mb(pid)), rss_mb(pid),
        journal_mb(cluster) - disk_before_mb, watcher.calls_ms,
    )  # fmt: skip


def acknowledged_s(cluster: Cluster, tasks: int) -> float:
    """Seconds from the call to the acknowledgement of a range, by a client that is connected."""
    with Client(str(cluster.runtime / "control.sock")) as client:
        client.status()
        start = time.perf_counter()
        client.submit("noop", range=range(tasks))
        return time.perf_counter() - start


def write_lines(file: IO[bytes], tasks: int) -> None:
    """Lines of LINE_BYTES, their ends not counted, each another."""
    filler = b"x" * (LINE_BYTES - 12)
    for first in range(0, tasks, WRITE_LINES):
        last = min(first + WRITE_LINES, tasks)
        file.write(b"".join(b"%012d%b\n" % (number, filler) for number in range(first, last)))


@contextlib.contextmanager
def cluster_of_none(folder: Path) -> Iterator[Cluster]:
    """A coordinator without workers."""
    with Cluster(folder) as cluster:
        for name, text in DEFINITIONS.items():
            (cluster.config / "tasks.d" / f"{name}.yaml").write_text(text)
        cluster.start_coordinator()
        yield cluster


def by_range(folder: Path, tasks: int) -> Figures:
    """`--range`."""
    with cluster_of_none(folder) as cluster:
        figures = measure(cluster, f"range of {tasks:,}", tasks, ["noop", "--range", f"1..{tasks}"])
        print(f"# acknowledged to a connected client after {1000 * acknowledged_s(cluster, tasks):.1f} ms")
        return figures


def by_matrix(folder: Path, tasks: int) -> Figures:
    """`--matrix`, of two parameters."""
    side = int(tasks**0.5)
    values = ",".join(map(str, range(side)))
    with cluster_of_none(folder) as cluster:
        return measure(
            cluster,
            f"matrix of {side:,} x {side:,}",
            side * side,
            ["grid", "--matrix", f"a={values}", "--matrix", f"b={values}"],
        )


def by_lines(folder: Path, tasks: int) -> Figures:
    """`--each-line FILE`."""
    path = folder / "lines.txt"
    with path.open("wb") as file:
        write_lines(file, tasks)
    try:
        with cluster_of_none(folder) as cluster:
            return measure(
                cluster, f"file of {tasks:,} lines of {LINE_BYTES} bytes", tasks, ["noop", "--each-line", str(path)]
            )
    finally:
        path.unlink()


def by_pipe(folder: Path, tasks: int) -> Figures:
    """`--each-line -`."""
    read, write = os.pipe()
    with cluster_of_none(folder) as cluster, os.fdopen(read, "rb") as source:
        feeder = threading.Thread(target=_feed, args=(write, tasks))
        feeder.start()
        figures = measure(
            cluster, f"pipe of {tasks:,} lines of {LINE_BYTES} bytes", tasks, ["noop", "--each-line", "-"], source
        )
        feeder.join()
        return figures


def through(folder: Path, tasks: int) -> str:
    """A range of no-ops by two workers to the last result, which `dctl` prints in task order."""
    with cluster_of_none(folder) as cluster:
        assert cluster.coordinator is not None
        workers = [cluster.start_worker(name) for name in ("w1", "w2")]
        cluster.wait_for_workers(2)
        submit(cluster, ["noop", "--range", "1..2000", "--wait"])
        pids = [cluster.coordinator.pid, *(worker.pid for worker in workers)]
        before_mb, disk_before_mb = [rss_mb(pid) for pid in pids], journal_mb(cluster)
        with Watcher(cluster, *pids) as watcher:
            output = folder / "results"
            arguments = ["noop", "--range", f"1..{tasks}", "--results", "-q"]
            _, seconds, client_mb = submit(cluster, arguments, output=output)
        assert sum(1 for _ in output.open("rb")) == tasks
        memory = ", ".join(f"{was:.0f} -> {most:.0f}" for was, most in zip(before_mb, watcher.highest_mb, strict=True))
        return (
            f"| {tasks:,} no-ops to the last result | {tasks / seconds:,.0f} tasks/s | client {client_mb:.0f} MB; "
            f"coordinator, worker, worker {memory} MB | {1e6 * (journal_mb(cluster) - disk_before_mb) / tasks:.0f} bytes "
            f"of journal a task | {spread(watcher.calls_ms)} ms |"
        )


def _feed(write: int, tasks: int) -> None:
    with os.fdopen(write, "wb") as file:
        write_lines(file, tasks)


FORMS: Final[dict[str, Callable[[Path, int], Figures]]] = {
    "range": by_range,
    "matrix": by_matrix,
    "lines": by_lines,
    "pipe": by_pipe,
}
THROUGH: Final = "through"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forms", nargs="*", default=list(FORMS), metavar="FORM", help=", ".join([*FORMS, THROUGH]))
    parser.add_argument("--tasks", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the journal goes (default: the system's temporary folder)")
    arguments = parser.parse_args()
    print(heading())
    print()
    print(
        "| submitted | seconds, `dctl` from start to end | client's highest MB | coordinator's MB before / highest / after "
        "| bytes a task | journal's MB | another's call, p99 / highest ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for form in arguments.forms:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            if form == THROUGH:
                print(through(Path(folder), arguments.tasks), flush=True)
            else:
                print(FORMS[form](Path(folder), arguments.tasks).row(), flush=True)


if __name__ == "__main__":
    main()
