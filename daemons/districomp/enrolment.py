"""Getting a certificate: by a join token, by a person who compares words, or by the control socket of one's machine.

Owns the order in which it is safe (that of k3s): fetch the authority's certificate from whoever answers, compare its
hash with the one that is known, connect again verified, and only then send the secret. Writes no file, and knows
nothing of what the certificate is for.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from districomp import __version__, dial
from districomp.dial import Address
from districomp.discovery import Browser, Found
from districomp.errors import RefusedError, RemoteProtocolError, TrustError, UnreachableError
from districomp.identity import AUTHORITIES_MAX, Identity, Source
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Authorities,
    Enrol,
    Enrolled,
    Goodbye,
    Heartbeat,
    HelloGuest,
    Pending,
    Refused,
)
from districomp.model import Machine
from districomp.stream import Connection
from districomp.tokens import JoinToken, cluster_id, pairing_words

if TYPE_CHECKING:
    from districomp.keys import NewKey

COORDINATOR_USER: Final = "dcoord"
ANSWER_S: Final = 10.0
"""How long the coordinator may take to answer a request: its disk may be slow."""
BEAT_S: Final = 5.0
"""How often a pending machine says that it is still there."""
SETTLE_S: Final = 0.2
"""More answers may come so long after the first; those of RFC 6762 (section 6) come within 0.12 s."""
_PROGRAM: Final = f"districomp {__version__}"
_REQUEST: Final = 1
_LEAVE_S: Final = 1.0
_UNREAD_MAX: Final = 16
_TEXT_CHARS_MAX: Final = 300


class Applicant(NamedTuple):
    """Who asks. `worker`: a worker's lasting id, '' for clients; the rest is for people to tell machines apart."""

    role: str
    worker: str = ""
    name: str = ""
    slots: int = 0
    machine: Machine = Machine()


async def enrol(
    where: Sequence[Address] | Path,
    *,
    role: str,
    worker: str = "",
    name: str = "",
    slots: int = 0,
    machine: Machine | None = None,
    token: JoinToken | None = None,
    cluster: str = "",
    on_pending: Callable[[str], None] | None = None,
) -> Identity:
    """An identity of the cluster of `token`, or of the id `cluster`, at one of these addresses or a control socket.

    Without a token, over the network, a person has to let the machine in: `on_pending` gets the words to compare, and
    this waits as long as it takes. With a socket the cluster may be '' (any). UnreachableError if nobody answers there,
    TrustError (naming the address) if it is not that cluster, RefusedError if the coordinator does not want us.
    """
    applicant = Applicant(role, worker, name, slots, machine or Machine())
    pin = token.cluster if token is not None else cluster
    # While it is being made, mostly by importing what makes it, connections are.
    making = asyncio.create_task(asyncio.to_thread(_new_key))
    others: list[_Guest] = []
    try:
        if isinstance(where, Path):
            guest = await _local(where, pin)
            source: Source = "local"
            addresses: list[Address] = []
        else:
            if not pin:
                raise TrustError("neither a token nor the cluster's id is known: nobody may be believed")
            address, guest = await dial.first(where, lambda host, port: _verified(host, port, pin), others.append)
            source, addresses = "token" if token is not None else "person", [address]
        try:
            key = await making
            secret = token.secret if token is not None else b""
            enrolled = await _ask(guest, applicant, key, secret, on_pending)
        finally:
            await asyncio.gather(*(one.leave() for one in (guest, *others)))
    finally:
        making.cancel()
    return assemble(enrolled, key, role=role, name=guest.known.name, source=source, addresses=addresses, pin=pin)


def assemble(
    enrolled: Enrolled,
    key: "NewKey",
    *,
    role: str,
    name: str,
    source: Source,
    addresses: Sequence[Address] = (),
    pin: str = "",
) -> Identity:
    """The identity that the coordinator's answer and our key make. TrustError if they do not fit together."""
    from districomp.tls import client_context, to_pem

    if enrolled.role != role or not 0 < len(enrolled.authorities) <= AUTHORITIES_MAX:
        raise TrustError(f"the coordinator answered with a certificate of role {enrolled.role!r}, not {role!r}")
    chain = to_pem([enrolled.certificate, *enrolled.chain])
    client_context(enrolled.authorities, chain, key.key)  # raises: OpenSSL is the judge of what fits together
    return Identity(
        cluster=cluster_id(enrolled.authorities[0]),
        name=name,
        role=role,
        identity=enrolled.identity,
        authorities=enrolled.authorities,
        certificate=chain,
        key=key.key,
        source=source,
        addresses=list(addresses),
        pin=pin or cluster_id(enrolled.authorities[0]),
    )


def renewed(identity: Identity, enrolled: Enrolled, key: "NewKey") -> Identity:
    """An identity with the certificate that answered a Renew. TrustError if they do not fit together."""
    if enrolled.identity != identity.identity:
        raise TrustError(f"the coordinator renewed the certificate of {enrolled.identity!r:.80}, not ours")
    fresh = assemble(enrolled, key, role=identity.role, name=identity.name, source=identity.source, pin=identity.pin)
    return msgspec.structs.replace(fresh, addresses=identity.addresses)


async def find(cluster: str, interfaces: list[str] | None, timeout_s: float) -> list[Address]:
    """Where this cluster (by its id) claims to be, by mDNS; [] if it was not heard of in time. ConfigError without mDNS.

    Finding is not trusting: anyone can advertise an id.
    """
    found: list[Found] = []
    heard = asyncio.Event()

    def note(all_found: list[Found]) -> None:
        found[:] = [one for one in all_found if one.cluster == cluster]
        if found:
            heard.set()

    browser = Browser(interfaces, note)
    await browser.start()
    try:
        async with asyncio.timeout(timeout_s):
            await heard.wait()
            await asyncio.sleep(SETTLE_S)
    except TimeoutError:
        pass
    finally:
        await browser.close()
    return [address for one in found for address in one.addresses]


def _new_key() -> "NewKey":
    from districomp.keys import new_key

    return new_key()


# ---- who is there ----


async def _verified(host: str, port: int, pin: str) -> "_Guest":
    """A connection to the coordinator with this authority. Whoever has not its key gets nothing but a greeting."""
    from districomp.tls import check_coordinator, client_context, server_name, unverified_context

    stranger = await _open(host, port, unverified_context(), server_name(pin))
    try:
        await stranger.greet()
    finally:
        await stranger.leave()
    authority = _pinned(stranger.known, pin)
    guest = await _open(host, port, client_context([authority]), server_name(pin))
    try:
        check_coordinator(guest.connection.certificate, guest.address)
        await guest.greet()
    except BaseException:
        guest.close()
        raise
    return guest


async def _local(path: Path, pin: str) -> "_Guest":
    """A connection to the coordinator of this machine."""
    if not hasattr(os, "geteuid") or not hasattr(socket, "AF_UNIX"):
        raise UnreachableError(f"{path}: this system has no Unix sockets; a join token is needed")
    guest = _Guest()
    try:
        check_socket(path)
        async with asyncio.timeout(dial.CONNECT_S):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: Connection(guest), str(path))
            # The file may have been changed under us: it counts who listens.
            credentials = connection.credentials()
            if credentials is not None and credentials[1] not in _trusted_users():
                raise TrustError(f"user {credentials[1]} listens there: not believing it")
            await guest.greet()
        if pin:
            _pinned(guest.known, pin)
    except (OSError, TrustError, UnreachableError, RemoteProtocolError) as error:
        guest.close()
        raise dial.failure({str(path): error}) from error
    except BaseException:
        guest.close()
        raise
    return guest


def check_socket(path: Path) -> None:
    """TrustError unless a control socket belongs to one who may say what this machine's coordinator is. OSError."""
    for part, is_right in ((path.parent, stat.S_ISDIR), (path, stat.S_ISSOCK)):
        status = part.lstat()
        if not is_right(status.st_mode) or status.st_uid not in _trusted_users():
            raise TrustError(f"{part} belongs to user {status.st_uid}: not believing what is there")


def _trusted_users() -> set[int]:
    """root, the coordinator's user, and ourselves."""
    users = {0, os.geteuid()}
    with contextlib.suppress(ImportError, KeyError):  # a Unix without a list of users
        import pwd

        users.add(pwd.getpwnam(COORDINATOR_USER).pw_uid)
    return users


def _pinned(claimed: Authorities, pin: str) -> bytes:
    """The authority (DER) with this hash."""
    for authority in claimed.authorities[:AUTHORITIES_MAX]:
        if cluster_id(authority) == pin:
            return authority
    raise TrustError(f"another cluster, {_plain(claimed.name)} ({_plain(claimed.cluster)}), not {pin}")


async def _open(host: str, port: int, context: ssl.SSLContext, name: str) -> "_Guest":
    guest = _Guest()
    await asyncio.get_running_loop().create_connection(
        lambda: Connection(guest),
        host,
        port,
        ssl=context,
        server_hostname=name,
        ssl_handshake_timeout=dial.CONNECT_S,
    )
    return guest


# ---- what is asked ----


async def _ask(
    guest: "_Guest",
    applicant: Applicant,
    key: "NewKey",
    secret: bytes,
    on_pending: Callable[[str], None] | None,
) -> Enrolled:
    role, worker, name, slots, machine = applicant
    guest.connection.send(Enrol(_REQUEST, role, key.csr, secret, worker, name, slots, machine))
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await guest.receive()
    except TimeoutError:
        raise UnreachableError(f"{guest.address} does not answer a request for a certificate") from None
    if isinstance(answer, Pending):
        if on_pending is not None:
            # The newest: the coordinator has forgotten nothing older, but its words are of one.
            on_pending(pairing_words(guest.known.authorities[0], key.spki, answer.nonce))
        answer = await guest.wait()
    if isinstance(answer, Enrolled):
        return answer
    if isinstance(answer, Refused):
        raise RefusedError(answer.code, f"{guest.address}: {_plain(answer.text)}")
    raise RemoteProtocolError(f"{guest.address} answered a request for a certificate by {type(answer).__name__}")


class _Guest:
    """One side of a conversation, as a stream.Handler. The end of the connection is an error for whoever waits."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[AnyMessage | None] = asyncio.Queue()
        self._reason = ""
        self._gone = asyncio.Event()
        self._opened: Connection | None = None
        self.known = Authorities("", "", [])
        """What the coordinator says it can be known by; as believable as the connection."""

    @property
    def connection(self) -> Connection:
        assert self._opened is not None
        return self._opened

    @property
    def address(self) -> str:
        return "the control socket" if self.connection.is_local else self.connection.address

    async def greet(self) -> None:
        """Say who is there, and have the other side say what it is."""
        self.connection.send(HelloGuest(PROTOCOL_VERSION, _PROGRAM))
        answer = await self.receive()
        if not isinstance(answer, Authorities) or not answer.authorities:
            raise RemoteProtocolError(f"{self.address} has no authority to show: it is no coordinator, or `insecure`")
        self.known = answer

    async def receive(self) -> AnyMessage:
        """The next message that is no heartbeat. UnreachableError at the connection's end, RefusedError at a Goodbye."""
        while True:
            message = await self._inbox.get()
            if message is None:
                raise UnreachableError(f"{self.address} broke the connection off: {self._reason}")
            if isinstance(message, Goodbye):
                raise RefusedError(message.code, f"{self.address}: {_plain(message.text)}")
            if not isinstance(message, Heartbeat):
                return message

    async def wait(self) -> AnyMessage:
        """`receive`, for as long as it takes, showing meanwhile that we are there."""
        beating = asyncio.create_task(self._beat())
        try:
            return await self.receive()
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self.connection.send(Heartbeat())

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    async def leave(self) -> None:
        """Close, and wait for its end: the event loop may be there for this conversation alone, and end with it."""
        if self._opened is None:
            return
        self._opened.close()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._gone.wait()
        except TimeoutError:
            self._opened.cut("does not end the connection")
            await self._gone.wait()

    # ---- stream.Handler ----

    def opened(self, connection: Connection) -> None:
        """See stream.Handler."""
        self._opened = connection

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        """See stream.Handler. Nobody has reason to say more than a few things to a guest."""
        for message in messages:
            if not isinstance(message, Heartbeat):
                self._inbox.put_nowait(message)
        if self._inbox.qsize() > _UNREAD_MAX:
            connection.close("protocol", "a guest was sent too many messages")

    def closed(self, connection: Connection, reason: str) -> None:
        """See stream.Handler."""
        self._reason = reason
        self._inbox.put_nowait(None)
        self._gone.set()


def _plain(text: str) -> str:
    """What a stranger says, fit for a terminal."""
    return "".join(char for char in text[:_TEXT_CHARS_MAX] if char.isprintable())
