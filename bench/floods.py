"""`python -m bench.floods KIND`: the attackers, as a process of their own. `bench.flood` measures what they do to others.

All comes from one loopback address, and ends after the given time. Prints `on` when the first wave has been sent, and at
the end how much was done as one line of JSON. Knows nothing of the cluster but its ports.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from demo.cluster import Cluster
from districomp import program, wire
from districomp.keys import new_key
from districomp.messages import PROTOCOL_VERSION, Enrol, Heartbeat, HelloGuest, Message
from districomp.tls import unverified_context

A_MINUTE: Final = 10_000
"""Connections a minute of the floods that come and go."""
SILENT: Final = 500
HALF: Final = 200
GUESTS: Final = 50
PENDING: Final = 300
"""More than one address may have."""
PACKETS_A_SECOND: Final = 2000
GROUP: Final = ("224.0.0.251", 5353)
READY_S: Final = 60.0
_HEAD: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: "


class Attack:
    """One flood: whom it hits, until when, and what it has done."""

    def __init__(self, control: int, data: int, web: int, seconds: float) -> None:
        self.control, self.data, self.web = control, data, web
        self.ends = time.monotonic() + seconds
        self.done: collections.Counter[str] = collections.Counter()
        self.tls = unverified_context()

    @property
    def left_s(self) -> float:
        """How long it goes on."""
        return max(0.0, self.ends - time.monotonic())

    def first_bytes(self, port: int) -> bytes:
        """What a good peer would begin with: a ClientHello, or an HTTP head that has no end yet."""
        return _HEAD if port == self.web else client_hello(self.tls)

    async def connect(self, port: int, *, tls: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection. OSError."""
        self.done["connections"] += 1
        context = self.tls if tls else None
        return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="x" if tls else None)

    async def keep(self, port: int, first: bytes, drip: bytes = b"") -> None:
        """Have a connection at all times that says this, and then a byte a second; again when it is cut."""
        while self.left_s:
            with contextlib.suppress(OSError):
                reader, writer = await self.connect(port)
                with contextlib.closing(writer):
                    writer.write(first)
                    rest = iter(drip)
                    while self.left_s and not await ended(reader, min(1.0, self.left_s)):
                        writer.write(bytes([next(rest, 0x61)]) if drip else b"")
                self.done["cut"] += 1
            await asyncio.sleep(min(0.2, self.left_s))

    async def come_and_go(self, visit: Callable[[int], Awaitable[None]], ports: list[int]) -> None:
        """A_MINUTE visits, as many at once as it takes, but not more than SILENT."""
        busy: set[asyncio.Task[None]] = set()
        start, number = time.monotonic(), 0
        while self.left_s:
            while number < (time.monotonic() - start) * A_MINUTE / 60 and len(busy) < SILENT:
                task = asyncio.create_task(self._visit(visit, ports[number % len(ports)]))
                busy.add(task)
                task.add_done_callback(busy.discard)
                number += 1
            await asyncio.sleep(0.005)
        for task in busy:
            task.cancel()

    async def _visit(self, visit: Callable[[int], Awaitable[None]], port: int) -> None:
        with contextlib.suppress(OSError, EOFError):
            await visit(port)
            self.done["visits"] += 1


async def ended(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Whether the other side ends the connection, or breaks it off, within this time."""
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(65536):
                pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def client_hello(context: ssl.SSLContext) -> bytes:
    """A good one: a whole TLS record."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x").do_handshake()
    return outgoing.read()


# ---- the floods; each returns when its first wave is on its way, and leaves tasks that go on ----

Flood = Callable[[Attack], list[Awaitable[None]]]


def silent(attack: Attack) -> list[Awaitable[None]]:
    """Connections that say nothing, to each port."""
    return [attack.keep(port, b"") for port in (attack.control, attack.data, attack.web) for _ in range(SILENT)]


def half_heads(attack: Attack) -> list[Awaitable[None]]:
    """Half a ClientHello, or half an HTTP head."""
    ports = (attack.control, attack.data, attack.web)
    return [attack.keep(port, attack.first_bytes(port)[:50]) for port in ports for _ in range(HALF)]


def byte_a_second(attack: Attack) -> list[Awaitable[None]]:
    """The same, and the rest of it slowly."""
    ports = (attack.control, attack.data, attack.web)
    heads = {port: attack.first_bytes(port) for port in ports}
    return [attack.keep(port, heads[port][:10], heads[port][10:]) for port in ports for _ in range(HALF)]


def connects(attack: Attack) -> list[Awaitable[None]]:
    """Connections that are closed at once."""

    async def visit(port: int) -> None:
        _, writer = await attack.connect(port)
        writer.close()

    return [attack.come_and_go(visit, [attack.control, attack.data, attack.web])]


def handshakes(attack: Attack) -> list[Awaitable[None]]:
    """Complete TLS handshakes without a certificate, and nothing after them."""

    async def visit(port: int) -> None:
        _, writer = await attack.connect(port, tls=True)
        writer.transport.abort()

    return [attack.come_and_go(visit, [attack.control, attack.data])]


def strangers(attack: Attack) -> list[Awaitable[None]]:
    """Complete handshakes that are followed by silence."""

    async def visit(port: int) -> None:
        reader, writer = await attack.connect(port, tls=True)
        await ended(reader, attack.left_s)
        writer.transport.abort()

    return [attack.come_and_go(visit, [attack.control, attack.data])]


def unfinished(attack: Attack) -> list[Awaitable[None]]:
    """A whole ClientHello, and no answer to the answer."""
    hello = client_hello(attack.tls)

    async def visit(port: int) -> None:
        reader, writer = await attack.connect(port)
        writer.write(hello)
        await ended(reader, attack.left_s)
        writer.transport.abort()

    return [attack.come_and_go(visit, [attack.control, attack.data])]


def frames(attack: Attack) -> list[Awaitable[None]]:
    """Guests that say endless things: heartbeats, garbage, the largest frames, requests for certificates."""
    encode = wire.encode
    enrol = Enrol(1, "worker", new_key().csr, bytes(20), "w", "flood")
    endless = [
        encode(Heartbeat()) * 40_000,
        os.urandom(64 * 1024),
        encode(HelloGuest(PROTOCOL_VERSION, "x" * 64_000)) * 4,
        encode(enrol) * 64,
        encode(Enrol(1, "worker", os.urandom(60_000), bytes(20), "w", "flood")) * 4,
    ]
    hello = encode(HelloGuest(PROTOCOL_VERSION, "flood"))
    kinds = iter(range(sys.maxsize))

    async def visit(port: int) -> None:
        reader, writer = await attack.connect(port, tls=True)
        writer.write(hello)
        writer.write(endless[next(kinds) % len(endless)])
        await ended(reader, min(10.0, attack.left_s))
        writer.transport.abort()

    return [attack.come_and_go(visit, [attack.control])]


def pending(attack: Attack) -> list[Awaitable[None]]:
    """Machines that wait for a person to let them in, each with its own key."""

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.005)
        csr = new_key().csr
        while attack.left_s:
            with contextlib.suppress(OSError):
                reader, writer = await attack.connect(attack.control, tls=True)
                with contextlib.closing(writer):
                    asked: list[Message] = [HelloGuest(PROTOCOL_VERSION, "flood")]
                    asked.append(Enrol(1, "worker", csr, b"", f"flood{number}", f"flood {number}"))
                    writer.write(b"".join(map(wire.encode, asked)))
                    while not await ended(reader, min(1.0, attack.left_s)) and attack.left_s:
                        writer.write(wire.encode(Heartbeat()))
                attack.done["cut"] += 1
            await asyncio.sleep(min(1.0, attack.left_s))

    return [one(number) for number in range(PENDING)]


def multicast(attack: Attack) -> list[Awaitable[None]]:
    """mDNS on the loopback interface: noise, questions for our service, and answers that advertise what is not there."""

    async def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            packets, start, count = mdns_packets(), time.monotonic(), 0
            while attack.left_s:
                while count < (time.monotonic() - start) * PACKETS_A_SECOND / 4:
                    count += 1
                    with contextlib.suppress(BlockingIOError):
                        sock.sendto(next(packets), GROUP)
                        attack.done["packets"] += 1
                await asyncio.sleep(0.01)

    return [send() for _ in range(4)]


def mdns_packets() -> Iterator[bytes]:
    """Noise, questions and answers in turn."""
    from zeroconf._dns import DNSPointer, DNSQuestion, DNSService
    from zeroconf._protocol.outgoing import DNSOutgoing

    from districomp.discovery import SERVICE_TYPE

    while True:
        yield random.randbytes(random.randrange(1, 1400))
        question = DNSOutgoing(0)
        question.add_question(DNSQuestion(SERVICE_TYPE, 12, 1))
        yield from question.packets()
        name = f"{random.randbytes(8).hex()}.{SERVICE_TYPE}"
        answer = DNSOutgoing(0x8400)
        answer.add_answer_at_time(DNSPointer(SERVICE_TYPE, 12, 1, 120, name), 0)
        answer.add_answer_at_time(DNSService(name, 33, 1, 120, 0, 0, 1, "nobody.local."), 0)
        yield from answer.packets()


FLOODS: Final[dict[str, Flood]] = {
    flood.__name__: flood
    for flood in (
        silent,
        half_heads,
        byte_a_second,
        connects,
        handshakes,
        strangers,
        unfinished,
        frames,
        pending,
        multicast,
    )
}


class Attacker:
    """A flood in a process of its own; a context manager that ends it."""

    def __init__(self, cluster: Cluster, kind: str, seconds: float) -> None:
        endpoint = cluster.endpoint()
        ports = [str(port) for port in (endpoint["control"][1], port_of(endpoint["data"]), port_of(endpoint["web"]))]
        argv = [sys.executable, "-m", "bench.floods", kind, *ports, "--seconds", str(seconds)]
        root = Path(__file__).resolve().parents[1]
        self._popen = subprocess.Popen(argv, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Attacker":
        assert self._popen.stdout is not None
        if self._popen.stdout.readline() != "on\n":
            raise RuntimeError("the flood did not begin")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> dict[str, int]:
        """End it; what it has done."""
        if self._popen.stdin is None or self._popen.stdin.closed:
            return {}
        out, _ = self._popen.communicate(timeout=READY_S)
        done: dict[str, int] = json.loads(out)
        return done


def port_of(url: str) -> int:
    """The port of a URL."""
    return int(url.rpartition(":")[2].strip("/"))


@contextlib.asynccontextmanager
async def until_told() -> AsyncIterator[asyncio.Event]:
    """An event that is set when standard input ends."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            told.set()

    loop.add_reader(0, readable)
    yield told


async def _run(arguments: argparse.Namespace) -> None:
    attack = Attack(arguments.control, arguments.data, arguments.web, arguments.seconds)
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(one) for one in FLOODS[arguments.kind](attack)]
    await asyncio.sleep(1.0)
    print("on", flush=True)
    async with until_told() as told:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(attack.left_s):
                await told.wait()
    attack.ends = 0.0
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    print(json.dumps(attack.done), flush=True)


def main() -> None:
    """Flood until standard input ends, or the time is over."""
    from districomp import openfiles

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=FLOODS)
    for port in ("control", "data", "web"):
        parser.add_argument(port, type=int)
    parser.add_argument("--seconds", type=float, default=10.0)
    openfiles.allow(16384)
    program.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
