"""One connection of the protocol over real sockets: keep-alive, back pressure, and a peer that takes nothing."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from districomp import stream
from districomp.messages import AnyMessage, Define, Heartbeat, HelloClient
from districomp.stream import Connection
from tests.patience import PATIENCE_S


class Owner:
    """Remembers what happened to its connections."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.messages: list[AnyMessage] = []
        self.ends: list[str] = []
        self.changed = asyncio.Event()

    def opened(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.changed.set()

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        self.messages += messages
        self.changed.set()

    def closed(self, connection: Connection, reason: str) -> None:
        self.ends.append(reason)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def with_pair(test: Callable[[Owner, Owner], Awaitable[None]]) -> None:
    """Run a test between an accepting and a connecting side."""

    async def run() -> None:
        server_side, client_side = Owner(), Owner()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(server_side, accepting=True), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await loop.create_connection(lambda: Connection(client_side), "127.0.0.1", port)
        await server_side.until(lambda: server_side.connections)
        try:
            await test(server_side, client_side)
        finally:
            for connection in client_side.connections + server_side.connections:
                connection.close()
            server.close()
            await server_side.until(lambda: server_side.ends)
            await client_side.until(lambda: client_side.ends)

    asyncio.run(run())


def test_the_system_looks_after_peers_that_say_nothing() -> None:
    async def test(server_side: Owner, client_side: Owner) -> None:
        for connection in server_side.connections + client_side.connections:
            assert connection._transport is not None
            sock: socket.socket = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    with_pair(test)


def test_a_peer_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "UNSENT_BYTES_MAX", 1024 * 1024)

    async def test(server_side: Owner, client_side: Owner) -> None:
        client_side.connections[0].pause_reading()
        big = Define("d", bytes(900_000))
        for _ in range(100):
            server_side.connections[0].send(big)
            if server_side.connections[0].is_closing:
                break
        await server_side.until(lambda: server_side.ends)
        assert "takes nothing" in server_side.ends[0]
        client_side.connections[0].resume_reading()

    with_pair(test)


def test_messages_come_in_order_and_once() -> None:
    async def test(server_side: Owner, client_side: Owner) -> None:
        client_side.connections[0].send(HelloClient(1, "x"))
        await server_side.until(lambda: server_side.messages)
        server_side.connections[0].greeted()
        for _ in range(1000):
            client_side.connections[0].send(Heartbeat())
        await server_side.until(lambda: len(server_side.messages) == 1001)
        assert isinstance(server_side.messages[0], HelloClient)

    with_pair(test)
