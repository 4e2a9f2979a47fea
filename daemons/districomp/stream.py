"""One connection of the wire protocol over an asyncio transport (TCP or a Unix socket).

Owns bytes in and out, the greeting's deadline, back pressure and an orderly end. Does not know what
a message means: the owner's handler does.
"""

import asyncio
import logging
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from districomp import clock, wire
from districomp.addresses import address_text, reachable_host
from districomp.errors import LocalProtocolError, RemoteProtocolError
from districomp.messages import GREETING_S, AnyMessage, Goodbye, Message

log = logging.getLogger(__name__)

UNSENT_BYTES_MAX = 64 * 1024 * 1024
"""A peer that lets more than this pile up is cut off: it must not grow us."""
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A peer's machine that vanished is noticed within a minute. A worker's lease is quicker; a client has none."""
CLOSE_S = 2.0
"""How long a closing connection may take to hand over its last bytes."""
READ_BYTES: Final = 256 * 1024
HELD_BYTES_MAX: Final = 64 * 1024
"""So much is held back at most, of what is said to one peer in one go: it has to be seen that he does not take it."""
_CREDENTIALS: Final = struct.Struct("=iII")
"""struct ucred (unix(7))."""


class Handler(Protocol):
    """Who owns a connection. Called from the event loop; must not block."""

    def opened(self, connection: "Connection") -> None:
        """The transport is connected; nothing has been received."""

    def received(self, connection: "Connection", messages: list[AnyMessage], at: float) -> None:
        """Whole messages, in order; `at` is when they arrived (Unix seconds)."""

    def closed(self, connection: "Connection", reason: str) -> None:
        """The connection is gone; called once, also when it was our own doing."""


class Outbox:
    """A context in which connections hold back what they are told to send, to write it at the end: one write a peer.

    Who was spoken to last is written to first: what follows from a batch, a lease or a result, is said after what
    only confirms, and is what somebody waits for.
    """

    def __init__(self) -> None:
        self._holding: dict[Connection, None] | None = None

    def __enter__(self) -> None:
        self._holding = {}

    def __exit__(self, *_exception: object) -> None:
        holding, self._holding = self._holding or {}, None
        for connection in reversed(holding):
            connection.flush()

    def holds(self, connection: "Connection") -> bool:
        """Whether it will be flushed; False: nobody will."""
        if self._holding is None:
            return False
        self._holding[connection] = None
        return True


class _Incoming(threading.local):
    """Where the bytes of a thread's connections arrive; they are taken out at once."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_incoming = _Incoming()


class Connection(asyncio.BufferedProtocol):
    """A framed connection. The accepting side calls `greeted()` once it has accepted the first message.

    `on_fault` is told what is wrong with the peer before it is cut off for that; without it the log is.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        accepting: bool = False,
        on_fault: "Callable[[Connection, str], None] | None" = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.peer = 0
        """A number of the owner's, for its tables."""
        self.address = ""
        """Where the peer is, for people: HOST:PORT, or the socket's path."""
        self.is_local = False
        """Whether it is a Unix socket."""
        self.host = ""
        """The host at which the other side was reached, '' for a Unix socket."""
        self.received_bytes = 0
        """All that has come by it."""
        self._handler = handler
        self._on_fault = on_fault
        self._accepting = accepting
        self._outbox = outbox
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._decoder = wire.Decoder()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reason = ""
        self._can_write = asyncio.Event()
        self._can_write.set()

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername") or transport.get_extra_info("sockname")
        self.is_local = not isinstance(name, tuple)
        self.address = "local" if self.is_local else address_text(name)
        self.host = "" if self.is_local else reachable_host(name)
        if not self.is_local:
            _keep_alive(transport.get_extra_info("socket"))
        if self._accepting:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(GREETING_S, self._abort, f"said nothing valid within {GREETING_S:g} s")
        else:
            self._decoder.greeted()
        self._handler.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio: where to put bytes. The same for all: a new one of this size for each few bytes takes longer than they do."""
        return _incoming.view

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio: bytes."""
        at = clock.now()
        self.received_bytes += nbytes
        try:
            messages = self._decoder.receive(_incoming.view[:nbytes])
        except RemoteProtocolError as error:
            self._fault(str(error))
            self.close("protocol", str(error))
            return
        if messages and not self.is_closing:
            self._handler.received(self, messages, at)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: gone."""
        self._cancel_deadline()
        self._can_write.set()
        transport, self._transport = self._transport, None
        if transport is not None:
            self._handler.closed(self, self._reason or (str(exc) if exc else "closed by the peer"))

    def pause_writing(self) -> None:
        """asyncio: the peer takes its bytes more slowly than we send them."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """asyncio: it has caught up."""
        self._can_write.set()

    # ---- the owner's side ----

    @property
    def certificate(self) -> dict[str, Any] | None:
        """What TLS has verified of the peer (`ssl.SSLSocket.getpeercert`); None without a certificate or without TLS."""
        return None if self._transport is None else self._transport.get_extra_info("peercert")

    def credentials(self) -> tuple[int, int, int] | None:
        """(pid, uid, gid) of the process at the other end of a Unix socket; None if the system does not say."""
        if self._transport is None or not self.is_local or not hasattr(socket, "SO_PEERCRED"):
            return None
        sock = self._transport.get_extra_info("socket")
        pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return pid, uid, gid

    def give_time(self) -> None:
        """The peer has said what it wants, and may wait for the answer. Its frames stay small: it has proved nothing."""
        self._cancel_deadline()

    def greeted(self) -> None:
        """The peer has said who it is: full-size frames from now on, no greeting deadline."""
        self._decoder.greeted()
        self._cancel_deadline()

    @property
    def is_closing(self) -> bool:
        """Whether it is closed or on its way there."""
        return self._transport is None or self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """Bytes accepted by `send` that the peer has not taken yet."""
        return 0 if self._transport is None else self._held_bytes + self._transport.get_write_buffer_size()

    @property
    def takes_more(self) -> bool:
        """Whether the peer takes its bytes about as fast as they are sent; `drained` waits for that."""
        return self._can_write.is_set() and not self.is_closing

    def send(self, message: Message) -> None:
        """Send a message; silently nothing when the connection is gone (its `closed` says so).

        LocalProtocolError for one that is too large, but not where the other side connected to us: that one is cut off,
        because nobody may end a daemon by what he makes it say.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            frame = wire.encode(message)
        except LocalProtocolError as error:
            if not self._accepting:
                raise
            self._abort(str(error))
            return
        self._held.append(frame)
        self._held_bytes += len(frame)
        if self._held_bytes > HELD_BYTES_MAX or self._outbox is None or not self._outbox.holds(self):
            self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        frames, self._held, self._held_bytes = self._held, [], 0
        transport = self._transport
        if not frames or transport is None or transport.is_closing():
            return
        transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._abort(f"takes nothing: {UNSENT_BYTES_MAX} bytes wait for it")

    async def drained(self) -> None:
        """Wait until the peer has taken most of what was sent, or is gone."""
        await self._can_write.wait()

    def pause_reading(self) -> None:
        """Take no more bytes until `resume_reading`."""
        if not self.is_closing and self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The inverse of `pause_reading`."""
        if not self.is_closing and self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def close(self, code: str = "", text: str = "") -> None:
        """End the connection, with a Goodbye if there is a code; cut it when the peer does not take that in time."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._reason = text or code or "closed"
        if code:
            self._held.append(wire.encode(Goodbye(code, text)))
        self.flush()
        transport.close()
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_later(CLOSE_S, transport.abort)

    def cut(self, reason: str) -> None:
        """End the connection now, without a word."""
        if self._transport is not None:
            self._reason = reason
            self._transport.abort()

    def _abort(self, reason: str) -> None:
        if self._transport is not None:
            self._fault(reason)
            self.cut(reason)

    def _fault(self, reason: str) -> None:
        if self._on_fault is not None:
            self._on_fault(self, reason)
        else:
            log.warning("%s: %s; closing its connection", self.address, reason)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _keep_alive(sock: socket.socket) -> None:
    """Have the system find out that a peer's machine is gone, also when neither side has anything to say."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
