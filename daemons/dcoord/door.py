"""A door: a TCP port where strangers knock. Who has said nothing costs a socket, and no memory for TLS.

Owns accepting, the wait for a whole ClientHello, the handshake, and how many may knock at once. Must not know
what is said after that; used by the control port and by the data port alike.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dcoord.crowd import Crowd
from dcoord.refusals import Refusals
from districomp.addresses import address_group, address_text

BACKLOG: Final = 1024
ACCEPTED_AT_ONCE: Final = 64
"""Accepted in one turn of the loop, so that a flood does not keep the others waiting."""
FULL_WAIT_S: Final = 0.5
"""Pause after the system refused another descriptor."""
_RECORD_HEAD: Final = struct.Struct("!BHH")
_HANDSHAKE: Final = 22
_RECORD_BYTES_MAX: Final = 16 * 1024


class Limits(NamedTuple):
    """What strangers may take. Too many of a kind: the oldest of the address that has the most of them has to go.

    `knock_s`: for the ClientHello, and again for the rest of the handshake. `knocking_max`, and of one address: who has
    not sent a whole ClientHello; it costs a few KiB, and 1,000 workers behind one address may come at once. `ready_max`:
    who has, and waits. `shaking_max`: handshakes under way, 50 KiB each; who has taken `shake_s` for its own makes room
    if others wait, so that unfinished ones do not shut the door.
    """

    knock_s: float = 5.0
    knocking_max: int = 2048
    knocking_per_address_max: int = 1024
    ready_max: int = 2048
    shaking_max: int = 512
    shake_s: float = 1.0


LIMITS: Final = Limits()


class _Knocking:
    """An accepted socket that has not done its handshake."""

    __slots__ = ("address", "asked", "given_up", "group", "since", "sock", "timer", "wanted")

    def __init__(self, sock: socket.socket, address: str, group: str) -> None:
        self.sock = sock
        self.address = address
        self.group = group
        self.wanted = _RECORD_HEAD.size
        self.asked = 1
        """How many bytes wake us up."""
        self.timer: asyncio.TimerHandle | None = None
        self.since = 0.0
        """When its handshake began (event loop's time)."""
        self.given_up = False


class Door:
    """One listening port, or several, of the same kind.

    `factory` makes the protocol of a connection once it is authenticated as far as TLS can; `context` gives the TLS
    context for a new connection, None for plain TCP; `what` names the door in the log; `to_plain` is sent to a peer
    that does not speak TLS.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        context: Callable[[], ssl.SSLContext | None],
        what: str,
        to_plain: bytes = b"",
        limits: Limits = LIMITS,
    ) -> None:
        self._factory = factory
        self._context = context
        self._refusals = Refusals(what)
        self._to_plain = to_plain
        self._limits = limits
        self._listening: list[socket.socket] = []
        self._knocking: Crowd[_Knocking] = Crowd()
        self._ready: Crowd[_Knocking] = Crowd()
        self._shaking: Crowd[_Knocking] = Crowd()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resuming: asyncio.TimerHandle | None = None
        self._waiting: asyncio.TimerHandle | None = None

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
        for timer in (self._resuming, self._waiting):
            if timer is not None:
                timer.cancel()
        for sock in self._listening:
            self.loop.remove_reader(sock.fileno())
            sock.close()
        self._listening.clear()
        for knocking in [*self._knocking, *self._ready]:
            self._drop(knocking)
        for knocking in self._shaking:
            self._give_up(knocking)

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
                self._be_ready(knocking)
            else:
                self._wait(knocking)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """There is no descriptor left: leave the rest in the system's queue for a moment instead of spinning."""
        self._refusals.add("", f"everybody for now: {os.strerror(error.errno or 0)}")
        self.loop.remove_reader(listening.fileno())

        def resume() -> None:
            for sock in self._listening:
                self.loop.add_reader(sock.fileno(), self._accept, sock)

        self._resuming = self.loop.call_later(FULL_WAIT_S, resume)

    def _wait(self, knocking: _Knocking) -> None:
        limits = self._limits
        if self._knocking.count(knocking.group) >= limits.knocking_per_address_max:
            oldest = self._knocking.oldest_of(knocking.group)
            self._expel(oldest, "too many connections of its address have said nothing")
        elif len(self._knocking) >= limits.knocking_max:
            self._expel(self._knocking.oldest(), "too many connections have said nothing")
        self._knocking.add(knocking.group, knocking)
        knocking.timer = self.loop.call_later(
            limits.knock_s, self._expel, knocking, f"sent no whole ClientHello within {limits.knock_s:g} s"
        )
        self._look(knocking)
        if knocking in self._knocking:
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
            if knocking.asked == knocking.wanted or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                # Woken without what was waited for, or it was broken off (uvloop says that once): no more will come.
                self._expel(knocking, "closed before its ClientHello was whole")
                return
            # Wake up when the rest is there, and not with each byte, nor all the time.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, knocking.wanted)
            knocking.asked = knocking.wanted
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._forget(knocking)
        self._be_ready(knocking)

    def _say_plainly(self, sock: socket.socket) -> None:
        """Tell a peer that does not speak TLS why it is sent away, if it still listens."""
        with contextlib.suppress(OSError):
            # What is unread when a socket is closed would take the answer with it.
            sock.recv(_RECORD_BYTES_MAX)
            sock.send(self._to_plain)

    # ---- the handshake ----

    def _be_ready(self, knocking: _Knocking) -> None:
        if len(self._ready) >= self._limits.ready_max:
            self._expel(self._ready.oldest(), "too many connections wait for their handshake")
        self._ready.add(knocking.group, knocking)
        self._shake()

    def _shake(self) -> None:
        """Begin handshakes, each address in its turn."""
        while self._ready and (len(self._shaking) < self._limits.shaking_max or self._make_room()):
            knocking = self._ready.take()
            knocking.since = self.loop.time()
            self._shaking.add(knocking.group, knocking)
            task = self.loop.create_task(self._welcome(knocking))
            self._tasks.add(task)
            task.add_done_callback(lambda task, knocking=knocking: self._shaken(task, knocking))  # type: ignore[misc]

    def _make_room(self) -> bool:
        """End a handshake that takes long, for those who wait. False if there is none yet; then we come back."""
        oldest = self._shaking.oldest()
        left_s = oldest.since + self._limits.shake_s - self.loop.time()
        if left_s <= 0:
            self._give_up(oldest)
            return True
        if self._waiting is None:

            def again() -> None:
                self._waiting = None
                self._shake()

            self._waiting = self.loop.call_later(left_s, again)
        return False

    def _give_up(self, knocking: _Knocking) -> None:
        """End a handshake by ending its connection: its socket is the transport's, and not to be closed under it."""
        self._shaking.discard(knocking)
        knocking.given_up = True
        with contextlib.suppress(OSError):
            knocking.sock.shutdown(socket.SHUT_RDWR)

    def _shaken(self, task: "asyncio.Task[None]", knocking: _Knocking) -> None:
        self._tasks.discard(task)
        self._shaking.discard(knocking)
        self._shake()
        if task.cancelled():
            knocking.sock.close()
        else:
            task.result()

    async def _welcome(self, knocking: _Knocking) -> None:
        context = self._context()
        options: dict[str, Any] = {}
        if context is not None:
            options = {"ssl": context, "ssl_handshake_timeout": self._limits.knock_s}
        try:
            await self.loop.connect_accepted_socket(self._factory, knocking.sock, **options)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = "its handshake takes long, and others wait" if knocking.given_up else _reason(error)
            self._refusals.add(knocking.group, f"{knocking.address}: {reason}")
            knocking.sock.close()

    # ---- inside ----

    def _expel(self, knocking: _Knocking, reason: str) -> None:
        if reason:
            self._refusals.add(knocking.group, f"{knocking.address}: {reason}")
        self._drop(knocking)

    def _drop(self, knocking: _Knocking) -> None:
        self._forget(knocking)
        self._ready.discard(knocking)
        knocking.sock.close()

    def _forget(self, knocking: _Knocking) -> None:
        """Its bytes are not awaited any more."""
        if knocking.timer is not None:
            knocking.timer.cancel()
            knocking.timer = None
        if self._knocking.discard(knocking):
            self.loop.remove_reader(knocking.sock.fileno())


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
    if isinstance(error, TimeoutError | ConnectionAbortedError | ConnectionResetError):
        return "the handshake was not completed in time, or given up by the peer"
    return f"the handshake failed: {error}"
