"""A Door by itself on a real port, on either event loop, and strangers who knock with any bytes."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import uvloop

from dcoord.authority import Authority
from dcoord.door import Door, Limits
from districomp import tls
from tests.patience import PATIENCE_S

WAIT_S = PATIENCE_S
TO_PLAIN = b"this port speaks TLS"
HELLO = b"hello"
LOOPS = ("uvloop", "asyncio")


class Guest(asyncio.Protocol):
    """Who came in is greeted, and then echoed."""

    def __init__(self, lab: "DoorLab") -> None:
        self._lab = lab
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._lab.inside[self] = self._transport
        self._transport.write(HELLO)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del self._lab.inside[self]


class DoorLab:
    """One Door, its authority, and how to knock."""

    def __init__(self, folder: Path, limits: Limits, *, plain: bool = False) -> None:
        self.authority = Authority.open(folder / "trust", "lab")
        self.inside: dict[Guest, asyncio.Transport] = {}
        self._name = tls.server_name(self.authority.cluster)
        self._client = tls.client_context(self.authority.authorities)
        context = self.authority.server_context()
        self.door = Door(
            lambda: Guest(self), lambda: None if plain else context, "the door", TO_PLAIN, limits
        )  # fmt: skip
        self.address = ("", 0)

    async def knock(self) -> socket.socket:
        """A connection that has said nothing."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def enter(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Do all that a good peer does."""
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection(
                *self.address, ssl=self._client, server_hostname=self._name
            )  # fmt: skip
            assert await reader.readexactly(len(HELLO)) == HELLO
        return reader, writer

    async def is_open(self) -> bool:
        """Whether a good peer is let in and served."""
        reader, writer = await self.enter()
        with contextlib.closing(writer):
            writer.write(b"echo")
            async with asyncio.timeout(WAIT_S):
                return await reader.readexactly(4) == b"echo"

    def client_hello(self) -> bytes:
        """The first bytes of a good peer: one TLS record."""
        return self.handshake()[1].read()

    def handshake(self) -> tuple[ssl.MemoryBIO, ssl.MemoryBIO, ssl.SSLObject]:
        """A client's TLS by hand, its first flight written: (incoming, outgoing, object)."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        made = self._client.wrap_bio(incoming, outgoing, server_hostname=self._name)
        with contextlib.suppress(ssl.SSLWantReadError):
            made.do_handshake()
        return incoming, outgoing, made

    async def shake_by_hand(self, pieces: Callable[[bytes], list[bytes]]) -> bytes:
        """A whole handshake, its first flight sent in pieces; what is said to us then."""
        loop = asyncio.get_running_loop()
        incoming, outgoing, made = self.handshake()
        sock = await self.knock()
        with sock:
            for piece in pieces(outgoing.read()):
                await loop.sock_sendall(sock, piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S):
                while True:
                    try:
                        made.do_handshake()
                        await loop.sock_sendall(sock, outgoing.read())
                        return made.read(len(HELLO))
                    except ssl.SSLWantReadError:
                        await loop.sock_sendall(sock, outgoing.read())
                        data = await loop.sock_recv(sock, 65536)
                        assert data, "closed in the handshake"
                        incoming.write(data)


@contextlib.asynccontextmanager
async def opened(folder: Path, limits: Limits | None = None, *, plain: bool = False) -> AsyncIterator[DoorLab]:
    """An open door; afterwards it is closed, and not one socket of it may be left."""
    lab = DoorLab(folder, limits or Limits(), plain=plain)
    before = open_sockets()
    lab.address = await lab.door.listen("127.0.0.1", 0)
    try:
        yield lab
    finally:
        lab.door.close()
        for transport in list(lab.inside.values()):
            transport.abort()
    await until(lambda: open_sockets() <= before, "every socket to be closed")


def run(kind: str, main: Coroutine[Any, Any, None]) -> None:
    """Run a test on uvloop, or on Python's own loop."""
    factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


async def until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until a condition is truthy."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.005)


async def said(sock: socket.socket) -> bytes:
    """All that the other side says until it ends the connection; waits for that."""
    data = b""
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionResetError):
            while piece := await asyncio.get_running_loop().sock_recv(sock, 65536):
                data += piece
    return data


def strangers(lab: "DoorLab") -> int:
    """How many have not been let in yet."""
    door = lab.door
    return len(door._knocking) + len(door._ready) + len(door._shaking)


async def knock_from(lab: "DoorLab", address: str) -> socket.socket:
    """A silent connection from another address of the loopback interface."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((address, 0))
    await asyncio.get_running_loop().sock_connect(sock, lab.address)
    return sock


def reset(sock: socket.socket) -> None:
    """Close by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def open_sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(path.readlink()).startswith("socket:")
    return count
