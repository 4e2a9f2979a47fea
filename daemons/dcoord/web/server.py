"""A listener: a bound port, its connections, their number and their deadlines.

Owns accepting, the cap on connections (an idle one makes room first), the sweep that ends slow peers, and a
clean stop. Must not know HTTP's framing (`http1`) nor any route.
"""

import asyncio
import email.utils
import logging
import time
from typing import Final

from dcoord.web.http1 import App, Deadlines, HttpConnection

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 1024
BACKLOG: Final = 512
SWEEP_S: Final = 1.0
STOP_S: Final = 5.0
DEFAULT_DEADLINES: Final = Deadlines()


class Listener:
    """One port that serves one ASGI application; `start` binds it, `stop` ends it."""

    scheme = "http"

    def __init__(
        self, app: App, *, connections_max: int = CONNECTIONS_MAX, deadlines: Deadlines = DEFAULT_DEADLINES
    ) -> None:
        self.app = app
        self.deadlines = deadlines
        self.connections_max = connections_max
        self._connections: dict[HttpConnection, None] = {}
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._date = (0, b"")
        self._sweep_s = min(SWEEP_S, *deadlines)
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, address: str, port: int) -> tuple[str, int]:
        """Bind and listen; the address and the port that it has (port 0: the system chooses). OSError if it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: HttpConnection(self), address, port, backlog=BACKLOG)
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def stop(self) -> None:
        """Accept no more, let the requests in hand be answered for STOP_S, then cut them."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.stop()
        try:
            async with asyncio.timeout(STOP_S):
                await self._empty.wait()
        except TimeoutError:
            log.warning("%d connections did not end within %g s and are cut", len(self._connections), STOP_S)
            for connection in list(self._connections):
                connection.cut()
            await self._empty.wait()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def opened(self, connection: HttpConnection) -> bool:
        """A connection was accepted. At the cap the longest idle one makes room; False if none is idle."""
        if len(self._connections) >= self.connections_max:
            idle = next((other for other in self._connections if other.is_idle), None)
            if idle is None:
                return False
            del self._connections[idle]
            idle.cut()
        self._connections[connection] = None
        self._empty.clear()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        return True

    def closed(self, connection: HttpConnection) -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def date(self) -> bytes:
        """The `Date` header's value, made once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, email.utils.formatdate(now, usegmt=True).encode("ascii"))
        return self._date[1]

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [each for each in self._connections if each.deadline < now]:
            connection.expire()
        # No connections, no timer: an idle process sleeps.
        self._sweeping = loop.call_later(self._sweep_s, self._sweep) if self._connections else None
