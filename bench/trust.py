"""`python -m bench.trust`: what it costs that everybody proves who he is.

First how long a new worker takes from its token to its place among the workers, phase by phase, everything imported before;
then no-op tasks with TLS and without in turn, two clusters side by side of which one is idle, and their ratio.
"""

import argparse
import asyncio
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from bench.client import client_of, write_token
from bench.machine import heading, summary
from bench.results import percentile
from bench.throughput import define, throughput
from dcoord.authority import Authority
from demo.cluster import Cluster
from districomp.enrolment import enrol
from districomp.identity import Identity
from districomp.keys import new_key
from districomp.messages import PROTOCOL_VERSION, AnyMessage, HelloGuest, HelloWorker, Message
from districomp.model import Machine
from districomp.stream import Connection
from districomp.tls import client_context, server_name, unverified_context
from districomp.tokens import JoinToken, parse_token

ANSWER_S: Final = 10.0
DAY_S: Final = 86400.0


class Phases(NamedTuple):
    """Milliseconds of each run."""

    enrolled: list[float]
    joined: list[float]
    key: list[float]
    stranger: list[float]
    signed: list[float]
    plain: list[float]


class Caller:
    """One side of a connection, as a stream.Handler: waits for the first answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[AnyMessage] = asyncio.get_running_loop().create_future()

    def opened(self, connection: Connection) -> None:
        """Nothing yet."""

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        """The first one is what was waited for."""
        if not self.answer.done():
            self.answer.set_result(messages[0])

    def closed(self, connection: Connection, reason: str) -> None:
        """No answer will come."""
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(reason))


async def greet(
    address: tuple[str, int], greeting: Message, context: ssl.SSLContext | None = None, name: str | None = None
) -> AnyMessage:
    """Connect, by TLS with a context and the name to be proved; greet, and have the answer."""
    caller = Caller()
    loop = asyncio.get_running_loop()
    host, port = address
    _, connection = await loop.create_connection(
        lambda: Connection(caller), host, port, ssl=context, server_hostname=name
    )
    connection.send(greeting)
    try:
        async with asyncio.timeout(ANSWER_S):
            return await caller.answer
    finally:
        connection.close()


def hello(worker: str) -> HelloWorker:
    """A worker's greeting."""
    return HelloWorker(PROTOCOL_VERSION, "", worker, worker, 1, Machine(), 1)


async def timed(times: list[float], work: Callable[[], Awaitable[object]]) -> object:
    """What it gives; how long it took goes into the list."""
    start = time.perf_counter()
    result = await work()
    times.append(1000 * (time.perf_counter() - start))
    return result


async def enrolment(secure: Cluster, insecure: Cluster, token: JoinToken, authority: Authority, runs: int) -> Phases:
    """One worker after the other, and beside each the parts alone."""
    phases = Phases([], [], [], [], [], [])
    address, plain_address = (tuple(cluster.endpoint()["control"]) for cluster in (secure, insecure))
    guest = HelloGuest(PROTOCOL_VERSION, "bench")
    for run in range(runs):
        name = f"new{run}"
        identity = await timed(
            phases.enrolled,
            lambda: enrol([address], role="worker", worker=name, name=name, token=token),  # noqa: B023
        )
        assert isinstance(identity, Identity)
        await timed(phases.joined, lambda: _join(address, identity))  # noqa: B023
        await timed(phases.plain, lambda: greet(plain_address, hello(name)))  # noqa: B023
        await timed(phases.stranger, lambda: greet(address, guest, unverified_context(), "anybody"))
        start = time.perf_counter()
        key = new_key()
        phases.key.append(1000 * (time.perf_counter() - start))
        start = time.perf_counter()
        authority.sign(key.csr, "worker", name, name)
        phases.signed.append(1000 * (time.perf_counter() - start))
    return phases


async def _join(address: tuple[str, int], identity: Identity) -> AnyMessage:
    context = client_context(identity.authorities, identity.certificate, identity.key)
    return await greet(address, hello(identity.identity), context, server_name(identity.cluster))


def print_phases(phases: Phases) -> None:
    """The table of one worker's way in."""
    whole = [enrolled + joined for enrolled, joined in zip(phases.enrolled, phases.joined, strict=True)]
    rows = (
        ("from its token to Welcome", whole),
        ("- enrolment: key, two connections, certificate", phases.enrolled),
        ("- first connection by the certificate, to Welcome", phases.joined),
        ("one connection that proves nothing yet, greeting", phases.stranger),
        ("making a key and its request", phases.key),
        ("signing a certificate", phases.signed),
        ("without TLS: connection, to Welcome", phases.plain),
    )
    print("| a new worker | ms, median [range], p99 |")
    print("|---|---|")
    for what, times in rows:
        p99 = percentile(times, 0.99)
        print(f"| {what} | {summary(times, 2)}, {p99:.2f} |")


def print_throughput(secure: Cluster, insecure: Cluster, tasks: int, runs: int) -> None:
    """No-op tasks with TLS and without, in turn."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with client_of(secure) as by_tls, client_of(insecure, insecure=True) as plainly:
        for client in (by_tls, plainly):
            throughput(client, "noop", 1000)
        for run in range(runs):
            order = (True, False) if run % 2 == 0 else (False, True)
            for is_plain in order:
                rates[is_plain].append(throughput(plainly if is_plain else by_tls, "noop", tasks))
    ratios = [tls / plain for tls, plain in zip(rates[False], rates[True], strict=True)]
    print(f"| no-op, {tasks:,} tasks, in turn | tasks/s, median [range] |")
    print("|---|---|")
    print(f"| with TLS | {summary(rates[False])} |")
    print(f"| without | {summary(rates[True])} |")
    print(f"| with / without, of each pair; of the medians | {summary(ratios, 2)}; {_ratio(rates):.2f} |")


def _ratio(rates: dict[bool, list[float]]) -> float:
    return statistics.median(rates[False]) / statistics.median(rates[True])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enrolments", type=int, default=100)
    parser.add_argument("--noop", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(Path(folder) / "tls") as secure,
        Cluster(Path(folder) / "plain", insecure=True) as insecure,
    ):
        for cluster in (secure, insecure):
            define(cluster)
            cluster.start_coordinator()
        token = parse_token(write_token(secure, "worker").read_text(encoding="ascii"))
        authority = Authority.open(Path(folder) / "authority", "bench", 30 * DAY_S)
        print(heading())
        print()
        print_phases(asyncio.run(enrolment(secure, insecure, token, authority, arguments.enrolments)))
        print()
        for cluster in (secure, insecure):
            for name in ("w1", "w2"):
                cluster.start_worker(name)
            cluster.wait_for_workers(2)
        print_throughput(secure, insecure, arguments.noop, arguments.runs)


if __name__ == "__main__":
    main()
