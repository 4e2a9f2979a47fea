"""One greeted, blocking connection of a client to its coordinator.

Owns the greeting, replies by request, and the renewal of the certificate by which it lives. Must not know what a request
means, where a coordinator is looked for, nor use asyncio: a command that only asks for the status must not pay for it.
"""

import os
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from districomp import wire
from districomp.client_address import Address
from districomp.client_socket import BrokenOffError, LinkLostError, connected, refused_certificate
from districomp.client_trust import Notice, Trust
from districomp.errors import (
    ConfigError,
    DistricompError,
    NotAllowedError,
    RefusedError,
    RemoteProtocolError,
    TrustError,
)
from districomp.messages import (
    GREETING_S,
    PROTOCOL_VERSION,
    AnyMessage,
    Authorities,
    DataAt,
    Enrolled,
    Goodbye,
    Heartbeat,
    HelloClient,
    Message,
    Refused,
    Renew,
    Welcome,
)

RECEIVE_BYTES: Final = 256 * 1024
RENEWAL_S: Final = 5.0
"""How long a new certificate is waited for, and how soon it is due that is renewed before anything else."""
RENEWAL_PAUSE_S: Final = 60.0
"""After a renewal that failed."""
AWAY_GOODBYES: Final = frozenset({"stopping", "degraded", "replaced"})
"""A Goodbye of these means that it is worth coming back; any other is an error for the caller."""
UNWANTED_GOODBYES: Final = frozenset({"not_allowed", "revoked", "expired"})


class Link:
    """One greeted connection. Not for several threads at once; after any error but RefusedError it must be closed."""

    def __init__(self, address: Address, program: str, trust: Trust, notice: Notice) -> None:
        self.address = address
        self._trust = trust
        self._notice = notice
        self._decoder = wire.Decoder()
        self._inbox: deque[AnyMessage] = deque()
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self._request = 0
        self._renew_at: float | None = None
        self._socket = connected(address, trust)
        try:
            self.welcome = self._welcomed(program)
            self.data_url = self.welcome.data_url
            self.authorities = self.welcome.authorities
            if address.is_tls:
                self._follow(self.welcome.renew_s)
        except BaseException:
            self.close()
            raise

    @property
    def user(self) -> str:
        """Whom the coordinator takes us for: the owner of what we submit."""
        return self.welcome.user or _local_user()

    @property
    def is_stale(self) -> bool:
        """Whether its certificate was due to be renewed while nobody used it: a new connection is better."""
        return self._renew_at is not None and time.monotonic() >= self._renew_at

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()

    def next_request(self) -> int:
        """A number for a new request on this connection."""
        self._request += 1
        return self._request

    def send(self, message: Message) -> None:
        """Send one message, however long the peer takes to read it. LinkLostError if it is gone."""
        self._send(wire.encode(message))

    def send_all(self, messages: Iterable[Message]) -> None:
        """Send several messages at once, as `send` does one."""
        self._send(b"".join([wire.encode(message) for message in messages]))

    def _send(self, frames: bytes) -> None:
        try:
            self._socket.settimeout(None)
            self._socket.sendall(frames)
        except OSError as error:
            raise self._lost_while_sending(error) from error

    def fileno(self) -> int:
        """The descriptor that becomes readable when something comes; `arrived` has to be called before waiting for that."""
        return self._socket.fileno()

    def arrived(self) -> list[AnyMessage]:
        """The replies and refusals that are here by now, to whatever request, without waiting. What concerns the
        connection itself is dealt with here; its certificate too, if that is due.
        """
        if self.is_stale:
            self._renew()
        while self._read(0):
            pass
        messages = [message for message in self._inbox if not self._is_own(message)]
        self._inbox.clear()
        return messages

    def receive(self, request: int, deadline: float | None = None) -> AnyMessage:
        """The next reply to `request`; TimeoutError at `deadline` (monotonic). A refusal is raised as RefusedError."""
        while True:
            while self._inbox:
                message = self._inbox.popleft()
                if self._concerns(message, request):
                    return message
            if self.is_stale:
                self._renew()
                continue
            until = [moment for moment in (deadline, self._renew_at) if moment is not None]
            try:
                self._read(remaining_s(min(until, default=None)))
            except TimeoutError:
                remaining_s(deadline)

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
        if self._is_own(message) or getattr(message, "request", None) != request:
            return False
        if isinstance(message, Refused):
            raise refusal(message)
        return True

    def _is_own(self, message: AnyMessage) -> bool:
        """Deal with a message that concerns the connection itself; False if it is none."""
        if isinstance(message, Goodbye):
            raise _farewell(message, self.address)
        if isinstance(message, DataAt):
            self.data_url = message.url
        elif isinstance(message, Authorities):
            self.authorities = message.authorities
            if self.address.is_tls:
                self._renew_at = time.monotonic()
        return isinstance(message, DataAt | Authorities | Heartbeat)

    # ---- the certificate ----

    def _follow(self, renew_s: float) -> None:
        """Have the certificate renewed in so many seconds (0: never); at once if it is due or its authority is an old one."""
        self._renew_at = time.monotonic() + renew_s if renew_s > 0 else None
        if self._trust.is_news(self.authorities) or 0 < renew_s < RENEWAL_S:
            self._renew()

    def _renew(self) -> None:
        """Have a new certificate, by which this connection lives on too. What comes meanwhile waits its turn.

        If that fails it is tried again later: until the old one ends there is no harm done.
        """
        self._renew_at = time.monotonic() + RENEWAL_PAUSE_S
        key = self._trust.new_key()
        request = self.next_request()
        deadline = time.monotonic() + RENEWAL_S
        self.send(Renew(request, key.csr))
        try:
            enrolled = self._renewed(request, deadline)
            self._trust.renewed(key, enrolled)
        except (TimeoutError, NotAllowedError, RefusedError, TrustError, ConfigError) as error:
            self._notice(f"the certificate could not be renewed: {error or 'no answer'}; see: dctl join")
            return
        # No oftener, whatever the coordinator says.
        self._renew_at = time.monotonic() + max(enrolled.renew_s, RENEWAL_S)

    def _renewed(self, request: int, deadline: float) -> Enrolled:
        waiting: deque[AnyMessage] = deque()
        try:
            while True:
                while self._inbox:
                    message = self._inbox.popleft()
                    if getattr(message, "request", None) != request:
                        waiting.append(message)
                        continue
                    if isinstance(message, Enrolled):
                        return message
                    if isinstance(message, Refused):
                        raise RefusedError(message.code, message.text)
                    raise RemoteProtocolError(f"the coordinator renewed a certificate by {type(message).__name__}")
                self._read(remaining_s(deadline))
        finally:
            self._inbox.extendleft(reversed(waiting))

    # ---- bytes ----

    def _read(self, timeout_s: float | None) -> bool:
        """Take in what has come; False if there is nothing and `timeout_s` is 0."""
        try:
            self._socket.settimeout(timeout_s)
            count = self._socket.recv_into(self._received)
        except BlockingIOError:
            return False
        except TimeoutError:
            raise
        except OSError as error:
            if _is_unready(error):
                return False
            raise LinkLostError(f"the connection to {self.address} broke: {error}") from error
        if not count:
            raise LinkLostError(f"the coordinator at {self.address} closed the connection")
        self._inbox.extend(self._decoder.receive(self._received[:count]))
        return True

    def _lost_while_sending(self, error: OSError) -> DistricompError:
        """Why sending failed: a Goodbye that is already here, or a refused certificate, says more than a broken pipe."""
        lost = LinkLostError(f"the connection to {self.address} broke: {error}")
        lost.__cause__ = error
        try:
            while self._read(1.0):
                pass
        except LinkLostError as read:
            if isinstance(read.__cause__, OSError) and refused_certificate(read.__cause__):
                lost = read
        except (TimeoutError, RemoteProtocolError):
            pass
        for message in self._inbox:
            if isinstance(message, Goodbye):
                return _farewell(message, self.address)
        return lost

    def _welcomed(self, program: str) -> Welcome:
        deadline = time.monotonic() + GREETING_S
        try:
            self.send(HelloClient(PROTOCOL_VERSION, program))
            while not self._inbox:
                self._read(remaining_s(deadline))
        except TimeoutError as error:
            raise LinkLostError(f"{self.address} does not answer within {GREETING_S:g} s") from error
        except RemoteProtocolError as error:
            raise LinkLostError(f"{self.address} is no coordinator: {error}") from error
        except LinkLostError as error:
            # With TLS 1.3 the server's word on our certificate comes only after we have said our first.
            cause = error.__cause__
            if isinstance(cause, OSError) and (refusal := refused_certificate(cause)):
                raise TrustError(f"the coordinator at {self.address} {refusal}") from error
            raise BrokenOffError(str(error), is_proven=self.address.is_tls) from error
        first = self._inbox.popleft()
        if isinstance(first, Goodbye):
            raise _farewell(first, self.address)
        if not isinstance(first, Welcome):
            raise LinkLostError(f"{self.address} is no coordinator: it answered with {type(first).__name__}")
        self._decoder.greeted()
        return first


def refusal(message: Refused) -> DistricompError:
    """A refusal as an error."""
    if message.code == "not_allowed":
        return NotAllowedError(message.text)
    return RefusedError(message.code, message.text)


def _is_unready(error: OSError) -> bool:
    """Whether TLS says that there is nothing yet; without importing `ssl` for those who have none."""
    return type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def _farewell(goodbye: Goodbye, address: Address) -> DistricompError:
    text = f"the coordinator at {address} says: {goodbye.text} ({goodbye.code})"
    if goodbye.code in AWAY_GOODBYES:
        return LinkLostError(text)
    return NotAllowedError(text) if goodbye.code in UNWANTED_GOODBYES else DistricompError(text)


def _local_user() -> str:
    """Who we are to a coordinator that asks nobody (an insecure one)."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "")


def remaining_s(deadline: float | None) -> float | None:
    """Seconds until `deadline` (monotonic). TimeoutError if it has passed."""
    if deadline is None:
        return None
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
