"""A listener: a bound port, its connections, their number and their deadlines.

Owns the cap on connections (an idle one makes room first, and before it one of somebody unknown), the sweep that ends
slow peers, and a clean stop. How a connection comes about, and TLS, is the door's (`dcoord.door`), which has caps and
deadlines of its own until the handshake is done. Must not know HTTP's framing (`http1`) nor any route.
"""

import asyncio
import email.utils
import logging
import ssl
import time
from collections.abc import Callable
from typing import Final

from dcoord.door import Door
from dcoord.web.http1 import App, Deadlines, HttpConnection

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 1024
SWEEP_S: Final = 1.0
STOP_S: Final = 5.0
DEFAULT_DEADLINES: Final = Deadlines()


def plain() -> ssl.SSLContext | None:
    """No TLS."""
    return None


class Listener:
    """One port that serves one ASGI application; `start` binds it, `stop` ends it. `context`: as for a Door."""

    def __init__(
        self,
        app: App,
        what: str,
        *,
        context: Callable[[], ssl.SSLContext | None] = plain,
        connections_max: int = CONNECTIONS_MAX,
        deadlines: Deadlines = DEFAULT_DEADLINES,
    ) -> None:
        self.app = app
        self.scheme = "http" if context() is None else "https"
        self.deadlines = deadlines
        self.connections_max = connections_max
        self._connections: dict[HttpConnection, None] = {}
        self._door = Door(lambda: HttpConnection(self), context, what)
        self._sweeping: asyncio.TimerHandle | None = None
        self._date = (0, b"")
        self._sweep_s = min(SWEEP_S, *deadlines)
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, address: str, port: int) -> tuple[str, int]:
        """Bind and listen; the address and the port that it has (port 0: the system chooses). OSError if it is taken."""
        return await self._door.listen(address, port)

    async def stop(self) -> None:
        """Accept no more, let the requests in hand be answered for STOP_S, then cut them."""
        self._door.close()
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
            all_idle = [other for other in self._connections if other.is_idle]
            idle = next((other for other in all_idle if not other.is_known), all_idle[0] if all_idle else None)
            if idle is None:
                return False
            del self._connections[idle]
            idle.end()
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
