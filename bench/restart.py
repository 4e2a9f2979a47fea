"""`python -m bench.restart`: how long a killed coordinator with millions of tasks takes until it hands the next one out.

The state is written into a real journal through the journal's own interface (`Journal.commit`), as the core would have
written it: a job of 11 million tasks of which a million have ended. Then the real `dcoord` is started, with TLS, and
an enrolled worker, of a real socket, connects as soon as somebody listens; the time is from exec to its first Assign.
Another worker, which was here before, never comes back: so what lies below the frontier and has not ended stays in
doubt, and the first lease is one above it. Each run ends with SIGKILL; the next one finds the log of the one before.
"""

import argparse
import asyncio
import contextlib
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bench.machine import heading, rss_mb, summary
from dcoord.core.records import (
    DefinitionRecord,
    FrontierRecord,
    JobRecord,
    OutcomeRecord,
    PayloadRecord,
    Record,
    WorkerRecord,
)
from dcoord.journal import Journal
from demo.cluster import COORDINATOR_YAML, Cluster, Process, script
from districomp import enrolment, tls, wire
from districomp.identity import Identity
from districomp.messages import PROTOCOL_VERSION, Assign, HelloWorker, Inventory, Welcome
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, Machine
from districomp.outcome import Outcome
from districomp.taskdef import Definition, encode_definition, with_digest

JOB: Final = 1
NOOP: Final = with_digest(Definition("noop", "", "", "stream", ["cat"]))
ROW_TASKS: Final = 1024
FRONTIER_AHEAD: Final = 1024
CHUNK_LINES: Final = 2500
LINE: Final = b"x" * 100
NOW: Final = 1_700_000_000.0
WAIT_S: Final = 60.0
RETRY_S: Final = 0.002


class Ended(NamedTuple):
    """A row of tasks, with what became of each ('' of `states`: all are done)."""

    indexes: list[int]
    states: list[int] = []


class State(NamedTuple):
    """What a coordinator had when it was killed."""

    what: str
    frontier: int
    rows: Callable[[], Iterator[Ended]]
    lines: bool = False


def in_order(ended: int) -> State:
    """The first tasks are done."""

    def rows() -> Iterator[Ended]:
        for first in range(0, ended, ROW_TASKS):
            yield Ended(list(range(first, min(first + ROW_TASKS, ended))))

    return State("done in order", ended, rows)


def scattered(ended: int) -> State:
    """Every second of twice as many is done, in no order at all: rows that name each of their tasks."""

    def rows() -> Iterator[Ended]:
        indexes = random.Random(1).sample(range(2 * ended), ended)
        for first in range(0, ended, ROW_TASKS):
            yield Ended(indexes[first : first + ROW_TASKS])

    return State("done, scattered over twice as many", 2 * ended, rows)


def mixed(ended: int) -> State:
    """In every row done, failed, cancelled, and to be retried: all that a person's jobs come to."""
    states = [DONE] * 6 + [FAILED, CANCELLED] + [QUEUED] * 2

    def rows() -> Iterator[Ended]:
        count = ended * len(states) // (len(states) - states.count(QUEUED))
        for first in range(0, count, ROW_TASKS):
            indexes = list(range(first, min(first + ROW_TASKS, count)))
            yield Ended(indexes, [states[index % len(states)] for index in indexes])

    return State("done, failed, cancelled; a quarter as many to be retried", ended * 5 // 4, rows)


def of_lines(ended: int) -> State:
    """As `in_order`, each task with a line of 100 bytes in the journal."""
    return in_order(ended)._replace(what="done in order, of a file of lines of 100 bytes", lines=True)


STATES: Final[dict[str, Callable[[int], State]]] = {
    "order": in_order,
    "scattered": scattered,
    "mixed": mixed,
    "lines": of_lines,
}


def outcome(serial: int, ended: Ended) -> Outcome:
    """A row as a worker's report makes it."""
    count = len(ended.indexes)
    row = Outcome(JOB, serial, "gone", ended.indexes, ended.states)
    row.started, row.ended, row.results = [NOW] * count, [NOW] * count, [b"a result of 24 bytes ..."] * count
    if ended.states:
        names = {DONE: "done", CANCELLED: "cancelled"}
        row.reasons = [names.get(state, "exit") for state in ended.states]
    return row


def write(journal: Path, state: State, ended: int, queued: int) -> None:
    """Have a journal hold the state."""
    with contextlib.closing(Journal.open(journal)) as opened:
        records: list[Record] = [DefinitionRecord(NOOP.digest, NOOP.name, encode_definition(NOOP))]
        count = ended + queued
        for first in range(0, count if state.lines else 0, CHUNK_LINES):
            records.append(PayloadRecord(JOB, first, [LINE] * min(CHUNK_LINES, count - first)))
            if len(records) > 20:
                opened.commit(records)
                records.clear()
        numbers = None if state.lines else (0, 1)
        records.append(JobRecord(JOB, "", "", "", NOOP.digest, NOOP.name, {}, count, numbers, None, NOW))
        records.append(WorkerRecord("gone", "gone", True, NOW))
        for serial, row in enumerate(state.rows(), 1):
            # A commit is what about a worker reports together, at full speed.
            opened.commit([*records, OutcomeRecord(outcome(serial, row))])
            records.clear()
        opened.commit([FrontierRecord(JOB, state.frontier + FRONTIER_AHEAD, NOW)])


class Worker:
    """A worker that only waits for its first lease."""

    def __init__(self, identity: Identity, port: int) -> None:
        self._identity = identity
        self._port = port
        self._context = tls.client_context(identity.authorities, identity.certificate, identity.key)
        self._name = tls.server_name(identity.cluster)

    def first_lease(self, process: Process, since: float) -> tuple[float, float, Assign]:
        """Seconds from `since` until somebody listens, and until the first lease; and that."""
        plain = self._connected(process)
        listening_s = time.perf_counter() - since
        with self._context.wrap_socket(plain, server_hostname=self._name) as link:
            decoder = wire.Decoder()
            decoder.greeted()
            identity = self._identity.identity
            link.sendall(wire.encode(HelloWorker(PROTOCOL_VERSION, "", identity, identity, 1, Machine(), 1)))
            while True:
                data = link.recv(65536)
                assert data, f"the coordinator closed the connection:\n{process.log_text()[-2000:]}"
                for message in decoder.receive(data):
                    if isinstance(message, Welcome):
                        link.sendall(wire.encode(Inventory(0, [], [], [], [], True)))
                    elif isinstance(message, Assign):
                        return listening_s, time.perf_counter() - since, message

    def _connected(self, process: Process) -> socket.socket:
        deadline = time.perf_counter() + WAIT_S
        while time.perf_counter() < deadline:
            assert process.returncode is None, process.log_text()[-2000:]
            try:
                link = socket.create_connection(("127.0.0.1", self._port), WAIT_S)
            except ConnectionRefusedError:
                time.sleep(RETRY_S)
                continue
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return link
        raise AssertionError(f"nobody listens:\n{process.log_text()[-2000:]}")


def measure(folder: Path, state: State, ended: int, queued: int, runs: int) -> str:
    """A line of the table."""
    with Cluster(folder) as cluster:
        cluster.start_coordinator()
        port = cluster.endpoint()["control"][1]
        identity = asyncio.run(
            enrolment.enrol(cluster.runtime / "control.sock", role="worker", worker="w", name="w", slots=1)
        )
        cluster.stop()
        journal = folder / "coordinator" / "state" / "dcoord" / "journal.sqlite"
        write(journal, state, ended, queued)
        size_mb = sum(file.stat().st_size for file in journal.parent.glob("journal*")) / 1e6
        file = cluster.config / "dcoord.yaml"
        file.write_text(COORDINATOR_YAML.format(name=cluster.name, lease="15s").replace("port: 0", f"port: {port}", 1))
        worker = Worker(identity, port)
        listening, leased, memory = [], [], []
        for _ in range(runs):
            since = time.perf_counter()
            argv = [script("dcoord"), "--config", str(file)]
            process = Process("dcoord", argv, cluster.environment, folder / "dcoord.log", folder)
            try:
                listening_s, leased_s, assign = worker.first_lease(process, since)
                assert min(assign.indexes) >= state.frontier, "a lease of what is in doubt"
                memory.append(rss_mb(process.pid))
            finally:
                process.kill()
            listening.append(listening_s)
            leased.append(leased_s)
        return (
            f"| {ended:,} {state.what}; {queued:,} queued | {summary(listening, 2)} | {summary(leased, 2)} | "
            f"{summary(memory)} | {size_mb:,.0f} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", nargs="*", default=list(STATES), metavar="STATE", help=", ".join(STATES))
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--queued", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the journal goes (default: the system's temporary folder)")
    arguments = parser.parse_args()
    print(heading())
    print()
    print("| what the journal holds | exec to listening, s | exec to first lease, s | memory then, MB | journal, MB |")
    print("|---|---|---|---|---|")
    for name in arguments.states:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            state = STATES[name](arguments.ended)
            print(measure(Path(folder), state, arguments.ended, arguments.queued, arguments.runs), flush=True)


if __name__ == "__main__":
    main()
