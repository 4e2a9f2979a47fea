"""Floods of strangers against real processes with TLS: who was let in works on, from the same address, and nothing grows.

The clock is no judge here: what is asserted is that calls succeed and that memory and log stay bounded. How long they
take is measured by `python -m bench.flood`.
"""

import asyncio
import contextlib
import http.client
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from bench.client import write_token
from bench.floods import FLOODS, Attacker, port_of
from bench.machine import rss_mb
from dcoord import listener
from demo.cluster import Cluster, wait_until
from districomp import keys, tls, wire
from districomp.client import Client
from districomp.messages import (
    GREETING_S,
    PROTOCOL_VERSION,
    AnyMessage,
    Enrol,
    Enrolled,
    Goodbye,
    Heartbeat,
    HelloGuest,
    HelloWorker,
    Inventory,
    Welcome,
)
from districomp.model import Machine
from districomp.tokens import parse_token
from tests.priority import ahead_of_others, timed

NOOP = "version: 1\nstream: [cat]\nretries: {max: 0}\n"
FLOOD_S = 50.0
FLOODED_S_MIN = 2.0
MEMORY_MB_MAX = 200.0
"""Of dcoord and of dcoord-web each, which begin with 50 and 40."""
LOG_BYTES_MAX = 128 * 1024
WORKERS = 1000
LIMIT_S = 50.0
WORKERS_LIMIT_S = 150.0
BEAT_S = 2.0


class Site(NamedTuple):
    """A cluster with one worker, and a person who has joined it."""

    cluster: Cluster
    token: Path

    @property
    def where(self) -> str:
        host, port = self.cluster.endpoint()["control"]
        return f"{host}:{port}"

    def client(self) -> Client:
        """A fresh connection with a certificate, over the network."""
        return Client(self.where, self.token)

    def memory_mb(self) -> list[float]:
        assert self.cluster.coordinator is not None
        return [rss_mb(pid) for pid in (self.cluster.coordinator.pid, self.cluster.endpoint()["web_pid"])]

    def everybody_works(self) -> None:
        """Each kind of call that there is."""
        with self.client() as client:
            assert client.status().workers == 1
            assert sum(1 for _ in client.submit("noop", range=range(20)).results()) == 20
            large = client.submit("noop", data=b"large" * 50_000)  # by the data port
            assert large.wait() is not None
        assert self.cluster.dctl_json("status")["workers"] == 1
        connection = http.client.HTTPConnection("127.0.0.1", port_of(self.cluster.endpoint()["web"]), timeout=30.0)
        with contextlib.closing(connection):
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Cluster(tmp_path_factory.mktemp("c")) as cluster, pytest.MonkeyPatch.context() as patch:
        (cluster.config / "tasks.d" / "noop.yaml").write_text(NOOP)
        patch.setenv("DISTRICOMP_STATE_DIR", str(cluster.folder / "client"))
        cluster.start_coordinator()
        cluster.start_worker("w1")
        cluster.wait_for_workers(1)
        wait_until(lambda: cluster.endpoint()["web"], "dcoord-web")
        yield Site(cluster, write_token(cluster, "submit"))


@pytest.fixture(autouse=True)
def _state(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRICOMP_STATE_DIR", str(site.cluster.folder / "client"))


@pytest.mark.parametrize("kind", FLOODS)
def test_during_a_flood_everybody_works_on(site: Site, kind: str) -> None:
    site.everybody_works()
    with Attacker(site.cluster, kind, FLOOD_S) as attacker:
        memory: list[float] = []
        start = time.monotonic()
        while not memory or time.monotonic() - start < FLOODED_S_MIN:
            site.everybody_works()
            memory += site.memory_mb()
        done = attacker.end()
    assert sum(done.values()) >= 200, f"the flood was none: {done}"
    assert max(memory) < MEMORY_MB_MAX
    site.everybody_works()


def test_after_all_floods_the_worker_never_left_and_the_log_is_short(site: Site) -> None:
    """Runs last; on its own it has little to say."""
    coordinator = site.cluster.coordinator
    assert coordinator is not None
    text = coordinator.log_text()
    assert text.count("worker w1 joined") == 1, text[-2000:]
    assert "Traceback" not in text
    assert len(text) < LOG_BYTES_MAX


# ---- peers by hand, many of them ----


class Peer:
    """A connection to the control port that speaks the protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = wire.Decoder()
        self._decoder.greeted()
        self._aside: list[AnyMessage] = []

    def send(self, *messages: AnyMessage) -> None:
        self._writer.write(b"".join(map(wire.encode, messages)))

    async def receive(self) -> AnyMessage | None:
        """The next message; None at the connection's end."""
        while not self._aside:
            try:
                data = await self._reader.read(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._aside += self._decoder.receive(data)
        return self._aside.pop(0)

    def close(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def peer(site: Site, certificate: bytes = b"", key: bytes = b"") -> AsyncIterator[Peer]:
    token = parse_token(site.token.read_text())
    host, port = site.cluster.endpoint()["control"]
    context = tls.client_context(AUTHORITIES[site.cluster.name], certificate, key)
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=tls.server_name(token.cluster)
    )
    made = Peer(reader, writer)
    try:
        yield made
    finally:
        made.close()


AUTHORITIES: dict[str, list[bytes]] = {}


@pytest.fixture
def known(site: Site) -> Site:
    """A site whose authority the peers by hand believe in."""
    from districomp.identity import IdentityFolder

    with site.client():
        pass
    identity = IdentityFolder(site.cluster.folder / "client" / "client").load()
    assert identity is not None
    AUTHORITIES[site.cluster.name] = identity.authorities
    return site


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("greeting", [[], [HelloGuest(PROTOCOL_VERSION, "test")]])
def test_nobodies_of_one_address_have_a_limit(known: Site, greeting: list[AnyMessage]) -> None:
    """With a handshake behind them, greeted or not: the oldest have to go, at once."""
    most = listener.UNPROVEN_PER_ADDRESS_MAX
    too_many = 20

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(LIMIT_S):
            first = [await stack.enter_async_context(peer(known)) for _ in range(too_many)]
            for each in first:
                each.send(*greeting)
            ended = [asyncio.create_task(until_end(each)) for each in first]
            await asyncio.gather(*(stack.enter_async_context(peer(known)) for _ in range(most)))
            await asyncio.gather(*ended)

    assert known.cluster.coordinator is not None
    with ahead_of_others(known.cluster.coordinator.pid), timed() as took:
        uvloop.run(main())
    assert took.alone_s < 4.0, "it was the deadline that ended them"
    known.everybody_works()


def test_a_nobody_may_say_little(known: Site) -> None:
    async def main() -> None:
        async with peer(known) as guest, asyncio.timeout(LIMIT_S):
            guest.send(HelloGuest(PROTOCOL_VERSION, "test"), *[Heartbeat()] * 2 * listener.GUEST_MESSAGES_MAX)
            last: AnyMessage | None = None
            while (message := await guest.receive()) is not None:
                last = message
            assert isinstance(last, Goodbye)
            assert "too many messages" in last.text

    uvloop.run(main())


async def until_end(each: Peer) -> None:
    while await each.receive() is not None:
        pass


async def beat(worker: Peer) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        worker.send(Heartbeat())


async def greet(worker: Peer, name: str, number: int) -> None:
    worker.send(HelloWorker(PROTOCOL_VERSION, "", name, name, 1, Machine(), number))
    welcome = await worker.receive()
    if welcome is None:
        raise ConnectionResetError
    assert isinstance(welcome, Welcome), welcome
    worker.send(Inventory(0, [], [], [], [], True))


async def stay(worker: Peer) -> None:
    worker.send(Heartbeat())
    assert await worker.receive() is not None


@pytest.mark.timeout(WORKERS_LIMIT_S + 30.0)
@pytest.mark.usefixtures("many_files")
def test_1000_workers_behind_one_address_are_welcome(known: Site) -> None:
    cluster = known.cluster
    secret = parse_token(write_token(cluster, "worker").read_text()).secret
    key = keys.new_key()
    before = known.memory_mb()[0]
    gate = asyncio.Semaphore(50)
    retries = 0

    async def enrol(number: int) -> bytes:
        async with gate, peer(known) as guest:
            guest.send(HelloGuest(PROTOCOL_VERSION, "test"))
            await guest.receive()
            guest.send(Enrol(1, "worker", key.csr, secret, f"many{number}", f"many-{number}", 1))
            enrolled = await guest.receive()
            assert isinstance(enrolled, Enrolled), enrolled
            return tls.to_pem([enrolled.certificate, *enrolled.chain])

    async def join(stack: contextlib.AsyncExitStack, number: int, certificate: bytes) -> Peer:
        nonlocal retries
        while True:
            # As every worker does: one process is slow at being a thousand.
            with contextlib.suppress(ConnectionError):
                return await stack.enter_async_context(joined(number, certificate))
            retries += 1
            await asyncio.sleep(1.0)

    @contextlib.asynccontextmanager
    async def joined(number: int, certificate: bytes) -> AsyncIterator[Peer]:
        async with peer(known, certificate, key.key) as worker:
            await greet(worker, f"many{number}", number)
            beating = asyncio.create_task(beat(worker))
            yield worker
            beating.cancel()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(WORKERS_LIMIT_S):
            certificates = await asyncio.gather(*(enrol(number) for number in range(WORKERS)))
            start = time.monotonic()
            workers = await asyncio.gather(
                *(join(stack, number, certificate) for number, certificate in enumerate(certificates))
            )  # all at once
            await asyncio.gather(*map(stay, workers))
            status = await asyncio.to_thread(cluster.dctl_json, "status")
            assert status["workers"] == WORKERS + 1
            each_kib = 1000 * (known.memory_mb()[0] - before) / WORKERS
            print(f"{time.monotonic() - start:.1f} s, {retries} retries, {each_kib:.0f} KiB of dcoord a worker")
            assert each_kib < 150.0
            await asyncio.sleep(GREETING_S + 1.0)  # longer than any deadline of strangers
            await asyncio.gather(*map(stay, workers))
            await asyncio.to_thread(known_works)

    def known_works() -> None:
        with known.client() as client:
            assert client.status().workers == WORKERS + 1

    uvloop.run(main())
