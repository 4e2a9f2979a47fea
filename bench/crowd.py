"""A crowd of workers in one process: real connections and messages, and no work. `python -m bench.crowd` compares them with two.

Each has its certificate and connection (or plain TCP), greets, says that it holds nothing, sends its heartbeats, and answers
what it is given at once: of every task the result is a byte. So what is measured is what workers cost the coordinator.
"""

import argparse
import asyncio
import contextlib
import json
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.client import client_of, write_token
from bench.machine import cpu_s, heading, rss_mb, summary
from bench.throughput import throughput
from demo.cluster import Cluster
from districomp.enrolment import enrol
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Assign,
    HelloWorker,
    Inventory,
    Recall,
    Reports,
    Returned,
    Stop,
    Welcome,
)
from districomp.messages import Heartbeat as Beat
from districomp.model import Machine
from districomp.stream import Connection
from districomp.tls import client_context, server_name
from districomp.tokens import parse_token

TASK_S: Final = 10e-6
"""How long each task is said to have taken."""
JOINING: Final = 8
"""So many join at once."""
IDLE: Final = "none"
"""The processor of a crowd that is to have nothing to do."""
NOOP_YAML: Final = "version: 1\nstream: [cat]\nretries: {{max: 0}}\nrequires: {{arch: [{arch}]}}\n"


class Figurant:
    """One worker of the crowd, as a stream.Handler."""

    def __init__(self) -> None:
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serial = time.time_ns() // 1000

    def opened(self, connection: Connection) -> None:
        """Nothing yet."""

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        """Answer."""
        for message in messages:
            if isinstance(message, Assign):
                connection.send(self._report(message))
            elif isinstance(message, Recall | Stop):
                connection.send(Returned([]))
            elif isinstance(message, Welcome):
                connection.send(Inventory(0, [], [], [], [], True))
                self._beat(connection, message.lease_s / 3)
                self.joined.set_result(None)

    def closed(self, connection: Connection, reason: str) -> None:
        """The crowd is not complete any more."""
        if not self.joined.done():
            self.joined.set_exception(ConnectionError(reason))
        elif reason:
            sys.stderr.write(f"a worker of the crowd has gone: {reason}\n")

    def _report(self, assign: Assign) -> Reports:
        count = len(assign.indexes)
        now = time.time()
        self._serial += 1
        leases = list(range(assign.lease, assign.lease + count))
        report = Reports(self._serial, assign.job, leases, assign.indexes, assign.attempts)
        report.started, report.ended, report.results = [now - TASK_S] * count, [now] * count, [b"r"] * count
        return report

    def _beat(self, connection: Connection, every_s: float) -> None:
        if not connection.is_closing:
            connection.send(Beat())
            asyncio.get_running_loop().call_later(every_s, self._beat, connection, every_s)


async def join(place: tuple[str, int], name: str, arch: str, slots: int, token: str) -> None:
    """Let one worker join, by a token or, without one, plainly."""
    options: dict[str, Any] = {}
    machine = Machine(arch, "Linux", 1, isolation=["none", "rlimit"])
    worker = name
    if token:
        identity = await enrol([place], role="worker", worker=name, name=name, token=parse_token(token))
        worker = identity.identity
        context = client_context(identity.authorities, identity.certificate, identity.key)
        options = {"ssl": context, "server_hostname": server_name(identity.cluster)}
    figurant = Figurant()
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(figurant), *place, **options)
    connection.send(HelloWorker(PROTOCOL_VERSION, "", worker, name, slots, machine, 1))
    await figurant.joined


async def gather(place: tuple[str, int], arguments: argparse.Namespace, token: str) -> None:
    """Let all of them join, say so, and go on until standard input ends."""
    free = asyncio.Semaphore(JOINING)
    ours = secrets.token_hex(4)

    async def one(number: int) -> None:
        async with free:
            await join(place, f"crowd{ours}n{number}", arguments.arch, arguments.slots, token)

    await asyncio.gather(*(one(number) for number in range(arguments.figurants)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def crowd(
    cluster: Cluster, count: int, *, insecure: bool = False, slots: int = 1, arch: str = platform.machine()
) -> Iterator[int]:
    """So many workers join a running cluster, in a process of their own, and leave at the end; that process' id.

    `arch`: what processor they say they have. With IDLE they are given no task of a definition that requires another.
    """
    where = json.dumps(cluster.endpoint()["control"])
    argv = [sys.executable, "-m", "bench.crowd", "--figurants", str(count), "--slots", str(slots), "--arch", arch]
    argv += ["--place", where]
    if not insecure:
        argv += ["--token-file", str(write_token(cluster, "worker"))]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the crowd of {count} workers did not come together; see above")
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def measure(cluster: Cluster, sizes: list[int], arguments: argparse.Namespace) -> None:
    """Print a row a size: the same job again and again with so many workers."""
    coordinator = cluster.coordinator
    assert coordinator is not None
    with client_of(cluster, insecure=arguments.insecure) as client:
        for number in [size for _ in range(arguments.rounds) for size in sizes]:
            idle = number - 2 if arguments.idle else 0
            with contextlib.ExitStack() as stack:
                if idle:
                    stack.enter_context(crowd(cluster, idle, insecure=arguments.insecure, arch=IDLE))
                pid = stack.enter_context(crowd(cluster, number - idle, insecure=arguments.insecure))
                throughput(client, "noop", 1000)
                before, theirs = cpu_s(coordinator.pid), cpu_s(pid)
                rates = [throughput(client, "noop", arguments.noop) for _ in range(arguments.runs)]
                tasks = arguments.noop * arguments.runs
                used = 1e6 * (cpu_s(coordinator.pid) - before) / tasks
                theirs = 1e6 * (cpu_s(pid) - theirs) / tasks
                memory = rss_mb(coordinator.pid)
                print(f"| {number:,} | {summary(rates)} | {used:.1f} | {theirs:.1f} | {memory:.0f} |", flush=True)


def main() -> None:
    """Print the table, or be the crowd."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1000])
    parser.add_argument("--idle", action="store_true", help="all but two of them have nothing to do")
    parser.add_argument("--noop", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--insecure", action="store_true", help="plain TCP")
    for name, kind in (("figurants", int), ("slots", int), ("arch", str), ("place", json.loads), ("token-file", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.figurants is not None:
        token = arguments.token_file.read_text(encoding="ascii") if arguments.token_file else ""
        uvloop.run(gather(tuple(arguments.place), arguments, token))
        return
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), insecure=arguments.insecure) as cluster:
        definition = NOOP_YAML.format(arch=platform.machine())
        (cluster.config / "tasks.d" / "noop.yaml").write_text(definition)
        cluster.start_coordinator()
        print(heading())
        print()
        print("| workers | tasks/s | the coordinator's us a task | the crowd's us a task | the coordinator's MB |")
        print("|---|---|---|---|---|")
        measure(cluster, arguments.workers, arguments)


if __name__ == "__main__":
    main()
