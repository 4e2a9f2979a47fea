"""A door: a TCP port where strangers knock. Who has said nothing costs a socket, and no memory for TLS.

Owns accepting, the wait for a whole ClientHello, the handshake, and how many may knock at once. Must not know
what is said after that; used by the control port and by the data port alike.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

from districomp.addresses import address_group, address_text

log = logging.getLogger(__name__)

KNOCK_S: Final = 5.0
"""How long a peer may take for its ClientHello, and again for the rest of the handshake."""
KNOCKING_MAX: Final = 1024
"""Who has not sent a whole ClientHello; a further one takes the place of the oldest."""
KNOCKING_PER_ADDRESS_MAX: Final = 256
SHAKING_MAX: Final = 64
"""Handshakes under way at once; what comes meanwhile waits as a socket alone."""
BACKLOG: Final = 1024
ACCEPTED_AT_ONCE: Final = 64
"""Accepted in one turn of the loop, so that a flood does not keep the others waiting."""
LOGGED_PER_ADDRESS_S: Final = 10.0
"""A refused address is logged so often at most."""
LOGGED_ADDRESSES_MAX: Final = 1024
FULL_WAIT_S: Final = 0.5
"""Pause after the system refused another descriptor."""
_RECORD_HEAD: Final = struct.Struct("!BHH")
_HANDSHAKE: Final = 22
_RECORD_BYTES_MAX: Final = 16 * 1024


class _Knocking:
    """An accepted socket whose first bytes are awaited."""

    __slots__ = ("address", "asked", "group", "sock", "timer", "wanted")

    def __init__(self, sock: socket.socket, address: str, group: str) -> None:
        self.sock = sock
        self.address = address
        self.group = group
        self.wanted = _RECORD_HEAD.size
        self.asked = 1
        """How many bytes wake us up."""
        self.timer: asyncio.TimerHandle | None = None


class Door:
    """One listening port, or several, of the same kind.

    `factory` makes the protocol of a connection once it is authenticated as far as TLS can; `context` gives the TLS
    context for a new connection, None for plain TCP; `what` names the door in the log; `to_plain` is sent to a peer
    that does not speak TLS.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext | None],
        what: str,
        to_plain: bytes = b"",
    ) -> None:
        self._factory = factory
        self._context = context
        self._what = what
        self._to_plain = to_plain
        self._listening: list[socket.socket] = []
        self._knocking: dict[socket.socket, _Knocking] = {}
        self._by_group: dict[str, dict[socket.socket, None]] = {}
        self._ready: dict[socket.socket, _Knocking] = {}
        self._shaking: set[asyncio.Task[None]] = set()
        self._logged: dict[str, float] = {}
        self._resuming: asyncio.TimerHandle | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs in."""
        return asyncio.get_running_loop()

    async def listen(self, address: str, port: int) -> tuple[str, int]:
        """Open the port; the address and port that it really has. `::` takes IPv4 as well. OSError if it is taken."""
        sock = _listening_socket(address, port)
        self._listening.append(sock)
        self.loop.add_reader(sock.fileno(), self._accept, sock)
        name: tuple[str, int] = sock.getsockname()[:2]
        return name

    def close(self) -> None:
        """Accept nobody any more, and send away who still knocks; connections that were made stay."""
        if self._resuming is not None:
            self._resuming.cancel()
        for sock in self._listening:
            self.loop.remove_reader(sock.fileno())
            sock.close()
        self._listening.clear()
        for knocking in [*self._knocking.values(), *self._ready.values()]:
            self._drop(knocking)
        for task in self._shaking:
            task.cancel()

    # ---- accepting ----

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            knocking = _Knocking(sock, address_text(name), address_group(str(name[0])))
            if self._context() is None:
                self._ready[sock] = knocking
                self._shake()
            else:
                self._wait(knocking)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """There is no descriptor left: leave the rest in the system's queue for a moment instead of spinning."""
        self._log("", f"cannot accept: {os.strerror(error.errno or 0)}")
        self.loop.remove_reader(listening.fileno())

        def resume() -> None:
            for sock in self._listening:
                self.loop.add_reader(sock.fileno(), self._accept, sock)

        self._resuming = self.loop.call_later(FULL_WAIT_S, resume)

    def _wait(self, knocking: _Knocking) -> None:
        group = self._by_group.setdefault(knocking.group, {})
        if len(group) >= KNOCKING_PER_ADDRESS_MAX:
            self._expel(self._knocking[next(iter(group))], "too many connections of its address have said nothing")
        elif len(self._knocking) >= KNOCKING_MAX:
            self._expel(next(iter(self._knocking.values())), "too many connections have said nothing")
        # Anew: the last one of the group may just have left with it.
        self._by_group.setdefault(knocking.group, {})[knocking.sock] = None
        self._knocking[knocking.sock] = knocking
        knocking.timer = self.loop.call_later(
            KNOCK_S, self._expel, knocking, f"sent no whole ClientHello within {KNOCK_S:g} s"
        )
        self._look(knocking)
        if knocking.sock in self._knocking:
            self.loop.add_reader(knocking.sock.fileno(), self._look, knocking)

    def _look(self, knocking: _Knocking) -> None:
        """Bytes are there: wait for more, or go on with the handshake. Nothing is taken out of the socket."""
        sock = knocking.sock
        try:
            head = sock.recv(_RECORD_HEAD.size, socket.MSG_PEEK)
            there = _bytes_there(sock)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._expel(knocking, f"went away: {error.strerror}")
            return
        if not head:
            self._expel(knocking, "")
            return
        if head[0] != _HANDSHAKE:
            self._say_plainly(sock)
            self._expel(knocking, "this port speaks TLS, and the peer does not")
            return
        if len(head) == _RECORD_HEAD.size:
            length = _RECORD_HEAD.unpack(head)[2]
            if length > _RECORD_BYTES_MAX:
                self._expel(knocking, f"a ClientHello of {length} bytes is too long")
                return
            knocking.wanted = _RECORD_HEAD.size + length
        if there < knocking.wanted:
            if knocking.asked == knocking.wanted:
                # Woken without what was waited for: no more will come.
                self._expel(knocking, "closed before its ClientHello was whole")
                return
            # Wake up when the rest is there, and not with each byte, nor all the time.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, knocking.wanted)
            knocking.asked = knocking.wanted
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._forget(knocking)
        self._ready[sock] = knocking
        self._shake()

    def _say_plainly(self, sock: socket.socket) -> None:
        """Tell a peer that does not speak TLS why it is sent away, if it still listens."""
        with contextlib.suppress(OSError):
            # What is unread when a socket is closed would take the answer with it.
            sock.recv(_RECORD_BYTES_MAX)
            sock.send(self._to_plain)

    # ---- the handshake ----

    def _shake(self) -> None:
        while self._ready and len(self._shaking) < SHAKING_MAX:
            knocking = self._ready.pop(next(iter(self._ready)))
            task = self.loop.create_task(self._welcome(knocking))
            self._shaking.add(task)
            task.add_done_callback(self._shaken)

    def _shaken(self, task: "asyncio.Task[None]") -> None:
        self._shaking.discard(task)
        if not task.cancelled():
            task.result()
        self._shake()

    async def _welcome(self, knocking: _Knocking) -> None:
        context = self._context()
        options: dict[str, Any] = {} if context is None else {"ssl": context, "ssl_handshake_timeout": KNOCK_S}
        try:
            await self.loop.connect_accepted_socket(self._factory, knocking.sock, **options)
        except (ssl.SSLError, OSError, ValueError) as error:
            self._log(knocking.group, f"{knocking.address}: {_reason(error)}")
            knocking.sock.close()
        except BaseException:
            knocking.sock.close()
            raise

    # ---- inside ----

    def _expel(self, knocking: _Knocking, reason: str) -> None:
        if reason:
            self._log(knocking.group, f"{knocking.address}: {reason}")
        self._drop(knocking)

    def _drop(self, knocking: _Knocking) -> None:
        self._forget(knocking)
        self._ready.pop(knocking.sock, None)
        knocking.sock.close()

    def _forget(self, knocking: _Knocking) -> None:
        """It is not awaited any more."""
        sock = knocking.sock
        if knocking.timer is not None:
            knocking.timer.cancel()
        if self._knocking.pop(sock, None) is None:
            return
        self.loop.remove_reader(sock.fileno())
        group = self._by_group[knocking.group]
        del group[sock]
        if not group:
            del self._by_group[knocking.group]

    def _log(self, group: str, text: str) -> None:
        """Log a refusal, once in a while an address: whoever knocks a thousand times must not fill the disk."""
        now = self.loop.time()
        last = self._logged.get(group)
        if last is not None and now - last < LOGGED_PER_ADDRESS_S:
            log.debug("%s refuses %s", self._what, text)
            return
        self._logged.pop(group, None)
        while len(self._logged) >= LOGGED_ADDRESSES_MAX:
            del self._logged[next(iter(self._logged))]
        self._logged[group] = now
        log.warning("%s refuses %s", self._what, text)


def _listening_socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        if address != "::":
            raise
        # A machine without IPv6.
        family, address = socket.AF_INET, "0.0.0.0"
        sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bytes_there(sock: socket.socket) -> int:
    count = bytearray(4)
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"the handshake failed: {error.reason or error}"
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        return "the handshake was not completed in time, or given up by the peer"
    return f"the handshake failed: {error}"
