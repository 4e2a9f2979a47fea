"""The coordinator's connections, by the control port and the control socket, and the inbox that they fill.

Owns connections and their numbers, the proof of who is there (certificate, the system's word, or a setting that
asks for none), the rule that a greeting comes first, and back pressure: whoever fills the inbox is not read until it
has been emptied. Must not know what the core makes of a message, nor who may do what.
"""

import asyncio
import logging
import os
import secrets
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path

from dcoord import local_peers
from dcoord.blobs import BlobStore
from dcoord.core.events import Events, Gone, Received
from dcoord.core.rights import GUEST, Principal
from dcoord.crowd import Crowd
from dcoord.door import Door
from dcoord.refusals import Refusals
from districomp import clock, tls, wire
from districomp.addresses import address_group
from districomp.alarm import Alarm
from districomp.errors import ConfigError, TrustError
from districomp.messages import (
    AnyMessage,
    CreateToken,
    Enrol,
    Goodbye,
    HelloClient,
    HelloGuest,
    HelloWeb,
    HelloWorker,
    Items,
    Renew,
    Submit,
)
from districomp.model import Blob, Item, item_content
from districomp.stream import Connection, Outbox

log = logging.getLogger(__name__)

INBOX_EVENTS_MAX = 2048
INBOX_BYTES_MAX = 1024 * 1024
"""Connections that add to a longer inbox, or one of more bytes, are not read until it has been emptied: whoever submits
faster than the disk takes it waits in his own memory, and a batch is never so large that others wait for it."""
UNPROVEN_MAX = 1024
UNPROVEN_PER_ADDRESS_MAX = 256
"""Connections, of all and of one address, without a certificate, and without a request for one that would be answered.
A further one takes the place of the oldest (of the largest crowd)."""
UNGREETED_PER_MEMBER_MAX = 16
"""Connections by one certificate that have not said what they want."""
GUEST_MESSAGES_MAX = 8
"""What a peer without a certificate may say at once; it gains one a second."""
ENTROPY_BYTES = 16
_NOT_LOCAL = "you may not use the control socket; become root or a member of the group districomp"
_NO_HOLDER = "this certificate is nobody's here; run: dctl join TOKEN"
TO_PLAIN = wire.encode(
    Goodbye("insecure", "this coordinator speaks TLS; update, or remove `insecure` from the configuration")
)


class Inbox:
    """Events for the core, in order of arrival."""

    def __init__(self) -> None:
        self._events: list[Events] = []
        self._bytes = 0
        self._is_woken = False
        self._waiter: asyncio.Future[None] | None = None
        self._alarm = Alarm(self.wake, clock.now)
        self._paused: list[Connection] = []

    def put(self, event: Events) -> None:
        """Add an event."""
        self._events.append(event)
        self.wake()

    def wake(self) -> None:
        """Make `next_batch` return, with what there is."""
        self._is_woken = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def hold_back(self, connection: Connection, size: int) -> None:
        """After a put of `size` bytes: do not read this connection on if the inbox is full."""
        self._bytes += size
        if len(self._events) > INBOX_EVENTS_MAX or self._bytes > INBOX_BYTES_MAX:
            connection.pause_reading()
            self._paused.append(connection)

    async def next_batch(self, until: float | None) -> list[Events]:
        """All events so far; waits for one, but not beyond `until` (Unix seconds)."""
        if not self._is_woken:
            self._alarm.set(until)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._is_woken = False
        events, self._events = self._events, []
        self._bytes = 0
        for connection in self._paused:
            connection.resume_reading()
        self._paused.clear()
        return events


class Listener:
    """Accepts connections and turns their messages into events. Implements `stream.Handler`.

    `context` gives the TLS context for a new connection; None: insecure, everybody is believed.
    """

    def __init__(self, inbox: Inbox, blobs: BlobStore, context: Callable[[], ssl.SSLContext | None]) -> None:
        self.connections: dict[int, Connection] = {}
        self.web_peer = 0
        """The connection of dcoord-web, 0 if there is none."""
        self.outbox = Outbox()
        """While it is entered, what is sent waits for its end."""
        self._inbox = inbox
        self._blobs = blobs
        self._context = context
        self._principals: dict[int, Principal] = {}
        self._guests: dict[int, _Budget] = {}
        self._greeted: dict[int, AnyMessage] = {}
        self._counted: dict[int, int] = {}
        """Bytes of each connection that the inbox knows of."""
        self._unproven: Crowd[Connection] = Crowd()
        self._ungreeted: Crowd[Connection] = Crowd()
        self._refusals = Refusals("the coordinator")
        self._last_peer = 0
        self._doors: list[Door] = []
        self._servers: list[asyncio.Server] = []

    # ---- doors ----

    async def listen(self, address: str, port: int) -> tuple[str, int]:
        """Open the control port; the address and port that it really has. ConfigError if it is taken."""
        door = Door(self._accept, self._context, "the control port", TO_PLAIN)
        try:
            name = await door.listen(address, port)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(
                f"listen: {address} port {port} cannot be opened: {reason}; "
                "stop what uses it, or set another port (0: the system chooses)"
            ) from error
        self._doors.append(door)
        return name

    async def listen_locally(self, path: Path) -> None:
        """Open the control socket. ConfigError if another coordinator answers on it."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Whoever may connect is judged by `local_peers`; where there are no users of ours, only the owner may.
        before = os.umask(0o111 if local_peers.is_shared() else 0o177)
        try:
            sock.bind(str(path))
        except OSError as error:
            sock.close()
            raise ConfigError(
                f"the control socket {path} cannot be made: {error}; set another runtime folder"
            ) from error
        finally:
            os.umask(before)
        server = await asyncio.get_running_loop().create_unix_server(self._accept, sock=sock)
        self._servers.append(server)

    def stop_listening(self) -> None:
        """Accept nobody any more; connections stay."""
        for door in self._doors:
            door.close()
        for server in self._servers:
            server.close()
        self._doors.clear()
        self._servers.clear()

    def refuse(self, connection: Connection, code: str, text: str) -> None:
        """Close a connection because of what its peer is or does, and log that, not more often than is useful."""
        self._fault(connection, text)
        connection.close(code, text)

    def close_all(self, code: str, text: str) -> None:
        """Say Goodbye to everybody."""
        for connection in list(self.connections.values()):
            connection.close(code, text)

    def is_member(self, connection: Connection) -> bool:
        """Whether this is a worker or a client. A guest gets the answer that it waits for, and nothing else."""
        return isinstance(self._greeted.get(connection.peer), HelloWorker | HelloClient)

    def is_web(self, connection: Connection) -> bool:
        """Whether this is dcoord-web."""
        return isinstance(self._greeted.get(connection.peer), HelloWeb)

    # ---- stream.Handler ----

    def opened(self, connection: Connection) -> None:
        """A peer connected; it has said nothing."""
        self._last_peer += 1
        connection.peer = self._last_peer
        self.connections[connection.peer] = connection
        principal = self._prove(connection)
        if principal is None:
            self.refuse(connection, "not_allowed", _NOT_LOCAL if connection.is_local else _NO_HOLDER)
            return
        self._principals[connection.peer] = principal
        if principal is GUEST:
            self._guests[connection.peer] = _Budget()
        if not connection.is_local:
            self._count(connection, principal)

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        """Messages of a peer; the first must be a greeting, and there is one only."""
        peer = connection.peer
        budget = self._guests.get(peer)
        if budget is not None and not budget.spend(len(messages)):
            self.refuse(connection, "protocol", "too many messages for somebody without a certificate")
            return
        for message in messages:
            is_hello = isinstance(message, HelloWorker | HelloClient | HelloWeb | HelloGuest)
            if is_hello == (peer in self._greeted) or (isinstance(message, HelloWeb) and not connection.is_local):
                if isinstance(message, Goodbye):
                    return
                self._fault(connection, f"{type(message).__name__} is not what comes now")
                connection.close("protocol", "the first message says who is there, once: a Hello")
                return
            if is_hello:
                self._greet(connection, message)
            elif isinstance(message, Enrol):
                # It is answered, or pending: of those the core has a limit.
                connection.give_time()
                self._uncount(connection)
            self._inbox.put(self._event(connection, message, at))
        self._inbox.hold_back(connection, connection.received_bytes - self._counted.get(peer, 0))
        self._counted[peer] = connection.received_bytes

    def closed(self, connection: Connection, reason: str) -> None:
        """A connection is gone."""
        peer = connection.peer
        self.connections.pop(peer, None)
        self._uncount(connection)
        self._principals.pop(peer, None)
        self._guests.pop(peer, None)
        self._counted.pop(peer, None)
        hello = self._greeted.pop(peer, None)
        if isinstance(hello, HelloWorker):
            log.info("worker %s (%s) disconnected: %s", hello.name, connection.address, reason)
        if hello is not None:
            self._inbox.put(Gone(peer, clock.now()))

    # ---- who is there ----

    def _prove(self, connection: Connection) -> Principal | None:
        """Who the peer has proved to be; None: it may not even ask."""
        if connection.is_local:
            return local_peers.principal_of(connection.credentials())
        if self._context() is None or connection.certificate is None:
            return GUEST
        holder = tls.holder(connection.certificate)
        if holder is None:
            return None
        # Certificates are dated by the calendar, the core's clock never jumps when somebody sets that.
        expires = holder.expires - time.time() + clock.now()
        return Principal(holder.role, holder.identity, holder.user, holder.name, expires, holder.cluster)

    def _greet(self, connection: Connection, hello: AnyMessage) -> None:
        """The peer says what it is; who it is was proved before."""
        peer = connection.peer
        self._greeted[peer] = hello
        principal = self._principals[peer]
        if isinstance(hello, HelloWeb) and principal.role == "admin":
            # A child of ours, under our own user.
            principal = Principal("web", name=principal.name)
        elif self._context() is None and not connection.is_local:
            principal = _believed(hello)
            self._guests.pop(peer, None)
        self._principals[peer] = principal
        if principal is not GUEST:
            self._uncount(connection)
            connection.greeted()
        log.debug("%s: %s, %s", connection.address, type(hello).__name__, principal.role)

    def _event(self, connection: Connection, message: AnyMessage, at: float) -> Received:
        """What the core is told, with what only the driver can know of it."""
        event = Received(connection.peer, message, at, connection.address, principal=self._principals[connection.peer])
        if isinstance(message, Submit | Items):
            event.fault = self._missing_blob(message)
        elif isinstance(message, Enrol | Renew):
            event.entropy = secrets.token_bytes(ENTROPY_BYTES)
            # Late, because it is needed by those alone who enrol somebody.
            from districomp import keys

            try:
                event.spki = keys.check_csr(message.csr)
            except TrustError as error:
                event.fault = "bad_request", str(error)
        elif isinstance(message, CreateToken):
            event.entropy = secrets.token_bytes(ENTROPY_BYTES)
        return event

    # ---- inside ----

    def _accept(self) -> Connection:
        return Connection(self, accepting=True, on_fault=self._fault, outbox=self.outbox)

    def _count(self, connection: Connection, principal: Principal) -> None:
        """One more of whom there may be only so many: strangers, or by one certificate, until they greet."""
        oldest: Connection | None = None
        if principal.identity:
            crowd, group, most = self._ungreeted, principal.identity, UNGREETED_PER_MEMBER_MAX
        else:
            # Without TLS it is a little memory each, and whole rooms come at once.
            most = UNPROVEN_MAX if self._context() is None else UNPROVEN_PER_ADDRESS_MAX
            crowd, group = self._unproven, address_group(connection.host)
        if crowd.count(group) >= most:
            oldest = crowd.oldest_of(group)
        elif crowd is self._unproven and len(crowd) >= UNPROVEN_MAX:
            oldest = crowd.oldest()
        if oldest is not None:
            self._uncount(oldest)
            self._fault(oldest, "too many connections wait to say who they are")
            oldest.cut("too many connections wait to say who they are")
        crowd.add(group, connection)

    def _uncount(self, connection: Connection) -> None:
        if not self._unproven.discard(connection):
            self._ungreeted.discard(connection)

    def _fault(self, connection: Connection, text: str) -> None:
        """Log what is wrong with a peer."""
        if connection.is_local:
            log.warning("%s: %s; closing its connection", connection.address, text)
            return
        principal = self._principals.get(connection.peer, GUEST)
        self._refusals.add(principal.identity or address_group(connection.host), f"{connection.address}: {text}")

    def _missing_blob(self, message: Submit | Items) -> tuple[str, str] | None:
        """A submission's payload that was announced but never uploaded, as a refusal."""
        for item in message.items:
            if type(item) is bytes:  # millions of lines
                continue
            blob = _blob_of(item)
            if blob is not None and self._blobs.size(blob.sha256.hex()) != blob.size:
                digest = blob.sha256.hex()
                return (
                    "blob_missing",
                    f"the data {digest} ({blob.size} bytes) was not uploaded; PUT /blobs/{digest} first",
                )
        return None


class _Budget:
    """How much somebody without a certificate may still say."""

    def __init__(self) -> None:
        self._left = float(GUEST_MESSAGES_MAX)
        self._at = clock.now()

    def spend(self, count: int) -> bool:
        now = clock.now()
        self._left = min(float(GUEST_MESSAGES_MAX), self._left + now - self._at) - count
        self._at = now
        return self._left >= 0


def _believed(hello: AnyMessage) -> Principal:
    """An insecure coordinator believes everybody."""
    if isinstance(hello, HelloWorker):
        return Principal("worker", hello.worker, name=hello.name)
    return Principal("admin") if isinstance(hello, HelloClient) else GUEST


def _blob_of(item: Item) -> Blob | None:
    content = item_content(item)
    return content if isinstance(content, Blob) else None


def _remove_stale_socket(path: Path) -> None:
    """Remove the socket of a coordinator that was killed. ConfigError if one answers on it."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is in the way: it is not a socket; remove it or set another runtime folder")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(
        f"another coordinator runs with this runtime folder: it answers on {path}; "
        "stop it, or set DISTRICOMP_RUNTIME_DIR (and _STATE_DIR, _CONFIG_DIR) to others"
    )
