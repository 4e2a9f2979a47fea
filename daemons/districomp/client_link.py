"""The client's connections: where a coordinator is looked for, one blocking link, and a pool that outlives restarts.

Owns addresses, the greeting, and coming back after a lost connection. Must not know what a request means,
nor use asyncio: a command that only asks for the status must not pay for an event loop.
"""

import errno
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from districomp import wire
from districomp.errors import (
    DistricompError,
    NotAllowedError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from districomp.messages import (
    GREETING_S,
    PROTOCOL_VERSION,
    AnyMessage,
    DataAt,
    Goodbye,
    Heartbeat,
    HelloClient,
    Message,
    Refused,
    Welcome,
)

CONTROL_PORT: Final = 8420
RECEIVE_BYTES: Final = 256 * 1024
IDLE_LINKS_MAX: Final = 4
PAUSE_S_MAX: Final = 2.0
FIRST_S: Final = 3.0
"""How long a coordinator is waited for that took our first connection and broke it off: it is being restarted."""
LOSSES_MAX: Final = 16
"""So many connections that break before an answer are no restart, but something the coordinator does not bear."""
AWAY_GOODBYES: Final = frozenset({"stopping", "degraded", "replaced"})
"""A Goodbye of these means that it is worth coming back; any other is an error for the caller."""

Notice = Callable[[str], None]
T = TypeVar("T")


class LinkLostError(DistricompError):
    """The connection broke; the request may be repeated on another."""


class BrokenOffError(LinkLostError):
    """The peer accepted the connection and broke it off before it had answered."""


class Address:
    """A Unix socket's path, or a host and a port."""

    def __init__(self, path: Path | None = None, host: str = "", port: int = 0) -> None:
        self.path = path
        self.host = host
        self.port = port

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, origin: str) -> Address:
    """Read HOST, HOST:PORT, [V6]:PORT or the path of a socket; `origin` says in the error where it was written."""
    if "/" in text:
        return Address(path=Path(text))
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        host, port = text, str(CONTROL_PORT)
    if text.startswith("[") and text.endswith("]"):
        host, port = text, str(CONTROL_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"{origin}: {text!r} is not a coordinator's address; write HOST:PORT or a socket's path")
    return Address(host=host, port=int(port))


def local_sockets() -> list[Path]:
    """Where a local coordinator's control socket may be: our own runtime folder, then the system's.

    The same as `config.Paths`, whose YAML a command that only asks for the status must not load.
    """
    own = os.environ.get("DISTRICOMP_RUNTIME_DIR")
    if own:
        return [Path(own).absolute() / "control.sock"]
    system = Path("/run/districomp/control.sock")
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return [system]
    state = _absolute_or("XDG_STATE_HOME", Path.home() / ".local" / "state") / "districomp"
    return [_absolute_or("XDG_RUNTIME_DIR", state / "run") / "districomp" / "control.sock", system]


def _absolute_or(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else default


def candidates(coordinator: str | None) -> list[Address]:
    """The addresses to try, in order: the one given; else the local sockets, then DISTRICOMP_COORDINATOR."""
    if coordinator:
        return [parse_address(coordinator, "coordinator")]
    found = [Address(path=path) for path in local_sockets()]
    named = os.environ.get("DISTRICOMP_COORDINATOR")
    if named:
        found.append(parse_address(named, "DISTRICOMP_COORDINATOR"))
    return found


class Link:
    """One greeted connection. Not for several threads at once; after any error but RefusedError it must be closed."""

    def __init__(self, address: Address, program: str) -> None:
        self.address = address
        self._decoder = wire.Decoder()
        self._inbox: deque[AnyMessage] = deque()
        self._request = 0
        self._socket = _connected(address)
        try:
            self.welcome = self._welcomed(program)
        except BaseException:
            self.close()
            raise
        self.data_url = self.welcome.data_url

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()

    def next_request(self) -> int:
        """A number for a new request on this connection."""
        self._request += 1
        return self._request

    def send(self, message: Message) -> None:
        """Send one message, however long the peer takes to read it. LinkLostError if it is gone."""
        frame = wire.encode(message)
        try:
            self._socket.settimeout(None)
            self._socket.sendall(frame)
        except OSError as error:
            raise self._lost_while_sending(error) from error

    def receive(self, request: int, deadline: float | None = None) -> AnyMessage:
        """The next reply to `request`; TimeoutError at `deadline` (monotonic). A refusal is raised as RefusedError."""
        while True:
            while self._inbox:
                message = self._inbox.popleft()
                if self._concerns(message, request):
                    return message
            self._read(_remaining_s(deadline))

    def poll(self, request: int) -> AnyMessage | None:
        """A reply to `request` if one is there already."""
        while self._read(0):
            pass
        while self._inbox:
            message = self._inbox.popleft()
            if self._concerns(message, request):
                return message
        return None

    def _concerns(self, message: AnyMessage, request: int) -> bool:
        """Whether a message answers `request`; what concerns the connection itself is dealt with here."""
        if isinstance(message, Goodbye):
            raise _farewell(message, self.address)
        if isinstance(message, DataAt):
            self.data_url = message.url
        if getattr(message, "request", None) != request:
            return False
        if isinstance(message, Refused):
            if message.code == "not_allowed":
                raise NotAllowedError(message.text)
            raise RefusedError(message.code, message.text)
        return not isinstance(message, Heartbeat)

    def _read(self, timeout_s: float | None) -> bool:
        """Take in what has come; False if there is nothing and `timeout_s` is 0."""
        try:
            self._socket.settimeout(timeout_s)
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except TimeoutError:
            raise
        except OSError as error:
            raise LinkLostError(f"the connection to {self.address} broke: {error}") from error
        if not data:
            raise LinkLostError(f"the coordinator at {self.address} closed the connection")
        self._inbox.extend(self._decoder.receive(data))
        return True

    def _lost_while_sending(self, error: OSError) -> DistricompError:
        """Why sending failed: a Goodbye that is already here says more than a broken pipe."""
        try:
            while self._read(1.0):
                pass
        except (LinkLostError, TimeoutError, RemoteProtocolError):
            pass
        for message in self._inbox:
            if isinstance(message, Goodbye):
                return _farewell(message, self.address)
        return LinkLostError(f"the connection to {self.address} broke: {error}")

    def _welcomed(self, program: str) -> Welcome:
        deadline = time.monotonic() + GREETING_S
        try:
            self.send(HelloClient(PROTOCOL_VERSION, program))
            while not self._inbox:
                self._read(_remaining_s(deadline))
        except TimeoutError as error:
            raise LinkLostError(f"{self.address} does not answer within {GREETING_S:g} s") from error
        except RemoteProtocolError as error:
            raise LinkLostError(f"{self.address} is no coordinator: {error}") from error
        except LinkLostError as error:
            raise BrokenOffError(str(error)) from error
        first = self._inbox.popleft()
        if isinstance(first, Goodbye):
            raise _farewell(first, self.address)
        if not isinstance(first, Welcome):
            raise LinkLostError(f"{self.address} is no coordinator: it answered with {type(first).__name__}")
        self._decoder.greeted()
        return first


class LinkPool:
    """Connections to one coordinator, one a request that is under way; safe to use from several threads.

    The first connection is tried once, but for one that is broken off. Once there was one, a lost connection is waited for with backoff,
    for ever or until the caller's deadline, and the request is made again.
    """

    def __init__(self, coordinator: str | None, program: str, notice: Notice | None) -> None:
        self._coordinator = coordinator
        self._program = program
        self._notice = notice or _silent
        self._idle: deque[Link] = deque()
        self._known: Address | None = None
        self._cluster = ""
        self.data_url = ""

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    def take(self, deadline: float | None = None, losses: int = 0) -> Link:
        """A connection, to be given back or closed; `losses` says how many broke in a row without an answer.

        UnreachableError if there never was one; TimeoutError at `deadline` (monotonic).
        """
        if losses >= LOSSES_MAX:
            raise DistricompError(
                f"the coordinator at {self._known} broke off the connection {losses} times instead of answering; see its log"
            )
        if losses:
            self.close()
            return self._return(deadline, losses - 1)
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if self._known is None:
            return self._first()
        try:
            return self._open(self._known)
        except LinkLostError:
            return self._return(deadline, 0)

    def give(self, link: Link) -> None:
        """Return a connection on which nothing is under way."""
        self.data_url = link.data_url
        if len(self._idle) >= IDLE_LINKS_MAX:
            link.close()
        else:
            self._idle.append(link)

    def call(self, ask: Callable[[Link], T], deadline: float | None = None) -> T:
        """Run `ask` on a connection, again on another one whenever that broke; `ask` must bear repetition."""
        losses = 0
        link = self.take(deadline)
        while True:
            try:
                answer = ask(link)
            except LinkLostError:
                link.close()
                losses += 1
                link = self.take(deadline, losses)
            except RefusedError:
                self.give(link)
                raise
            except BaseException:
                link.close()
                raise
            else:
                self.give(link)
                return answer

    def fresh_data_url(self) -> str:
        """The data port's address as the coordinator says it now; '' if it has none yet."""
        self.close()
        return self.call(lambda link: link.data_url)

    def _first(self) -> Link:
        tried: list[str] = []
        for address in candidates(self._coordinator):
            try:
                return self._open_patiently(address)
            except LinkLostError as error:
                tried.append(str(error))
        raise UnreachableError(f"no coordinator reachable: {'; '.join(tried)}. {_advice(self._coordinator)}")

    def _open_patiently(self, address: Address) -> Link:
        """Connect for the first time; again for FIRST_S if somebody was there and broke it off."""
        patient_until = 0.0
        while True:
            try:
                return self._open(address)
            except BrokenOffError:
                patient_until = patient_until or time.monotonic() + FIRST_S
                if time.monotonic() >= patient_until:
                    raise
            except LinkLostError:
                if time.monotonic() >= patient_until:
                    raise
            time.sleep(random.uniform(0.05, 0.2))

    def _return(self, deadline: float | None, attempt: int) -> Link:
        """Connect again, however long it takes; `attempt` is how patient to be at the start."""
        assert self._known is not None
        failures = 0
        away = False
        while True:
            pause_s = random.uniform(0, min(PAUSE_S_MAX, 0.05 * 2 ** min(attempt, 10)))
            remaining_s = _remaining_s(deadline)
            time.sleep(pause_s if remaining_s is None else min(pause_s, remaining_s))
            try:
                link = self._open(self._known)
            except LinkLostError as error:
                attempt += 1
                failures += 1
                if failures == 3:
                    self._notice(f"coordinator away, waiting for it ({error})")
                    away = True
                continue
            if away:
                self._notice("coordinator is back")
            return link

    def _open(self, address: Address) -> Link:
        link = Link(address, self._program)
        if self._cluster and link.welcome.cluster != self._cluster:
            link.close()
            raise DistricompError(
                f"at {address} there is now another cluster ({link.welcome.cluster}, before: {self._cluster}); "
                "what was asked for is not there"
            )
        self._known = address
        self._cluster = link.welcome.cluster
        self.data_url = link.data_url
        return link


def _connected(address: Address) -> socket.socket:
    """A connected socket. LinkLostError if nobody is there, NotAllowedError if we may not connect."""
    try:
        if address.path is None:
            return _connected_tcp(address)
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(GREETING_S)
            link.connect(str(address.path))
        except BaseException:
            link.close()
            raise
    except PermissionError as error:
        raise NotAllowedError(
            f"{address}: you may not use this control socket; become its owner or a member of its group"
        ) from error
    except FileNotFoundError as error:
        raise LinkLostError(f"there is no {address}") from error
    except OSError as error:
        what = "nobody listens" if error.errno == errno.ECONNREFUSED else str(error)
        raise LinkLostError(f"{address}: {what}") from error
    return link


def _connected_tcp(address: Address) -> socket.socket:
    link = socket.create_connection((address.host, address.port), timeout=GREETING_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A watch may be silent for hours: only the kernel's probes tell a quiet peer from one that is gone.
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return link


def _farewell(goodbye: Goodbye, address: Address) -> DistricompError:
    text = f"the coordinator at {address} says: {goodbye.text} ({goodbye.code})"
    return LinkLostError(text) if goodbye.code in AWAY_GOODBYES else DistricompError(text)


def _advice(coordinator: str | None) -> str:
    if coordinator or os.environ.get("DISTRICOMP_COORDINATOR"):
        return "Check the address, and that dcoord runs there"
    return "Start dcoord, or set DISTRICOMP_COORDINATOR=HOST:PORT (DISTRICOMP_RUNTIME_DIR for another local one)"


def _remaining_s(deadline: float | None) -> float | None:
    """Seconds until `deadline` (monotonic). TimeoutError if it has passed."""
    if deadline is None:
        return None
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    return remaining_s


def _silent(_text: str) -> None:
    """The notice of a library that keeps quiet."""
