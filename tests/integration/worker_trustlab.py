"""A coordinator with a real authority and real TLS, small enough to see through, and one that is a liar.

Like `workerlab`, which it builds on: it does what a test tells it, and notes everything that it hears.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dcoord.authority import Authority
from dcoord.door import Door
from districomp import enrolment, keys, tls
from districomp.discovery import Advertisement, Advertiser
from districomp.identity import Identity, IdentityFolder
from districomp.messages import (
    AnyMessage,
    AskGrant,
    Authorities,
    Enrol,
    Enrolled,
    Granted,
    HelloGuest,
    HelloWorker,
    Pending,
    Refused,
    Renew,
    Welcome,
)
from districomp.stream import Connection
from districomp.tokens import JoinToken, authority_hash, format_token, pairing_words
from tests.integration.workerlab import DataPort, Lab, Worker, in_lab_of

LOOPBACK = ["127.0.0.1"]
QUIET_S = 1.5
"""So long nothing may happen that must not; what may happen does within a tenth of it."""


class TrustLab(Lab):
    """`refuse`: code and text that answer every Enrol; `pending`: let nobody in before `approve`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = "discovery: {interfaces: [127.0.0.1]}\n"
        self.authority = Authority.open(folder / "trust", "lab")
        self.cluster = self.authority.cluster
        self.claims: list[bytes] | None = None
        """What it says its authorities are; None: the truth."""
        self.token = JoinToken("worker", authority_hash(self.authority.authorities[0]), secrets.token_bytes(16))
        self.refuse: tuple[str, str] | None = None
        self.pending: dict[Connection, tuple[Enrol, str]] | None = None
        self.revoked = False
        """Whether workers that have a certificate are sent away."""
        self.renew_s = 0.0
        self.serials: list[str] = []
        """Of the certificate of each worker that greeted."""
        self.guests: list[Connection] = []
        self.asked: list[AskGrant] = []
        self.refused_grants = False
        self.came_along: list[str] = []
        self._doors: list[Door] = []
        self._unix: asyncio.Server | None = None
        self.data.close()
        self.data = DataPort(
            tls.server_context(*self.authority.web_chain(), self.authority.authorities),
        )

    # ---- as stream.Handler ----

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        for message in messages:
            if isinstance(message, HelloWorker) and connection.certificate is not None:
                self.serials.append(connection.certificate["serialNumber"])
                if self.revoked:
                    self.greet = False
                    connection.close("revoked", "your certificate was revoked")
            elif isinstance(message, HelloGuest):
                self.guests.append(connection)
                authorities = self.authority.authorities if self.claims is None else self.claims
                connection.send(Authorities(self.cluster, "lab", authorities))
            elif isinstance(message, Enrol):
                self.on_enrol(connection, message)
            elif isinstance(message, Renew):
                (hello,) = {one.worker for one in self.hellos}
                self.sign(connection, message, "worker", hello)
            elif isinstance(message, AskGrant):
                self.on_ask(connection, message)
        super().received(connection, messages, at)

    def on_enrol(self, connection: Connection, message: Enrol) -> None:
        if self.refuse is not None:
            connection.send(Refused(message.request, *self.refuse))
        elif self.pending is not None:
            nonce = secrets.token_bytes(16)
            words = pairing_words(self.authority.authorities[0], keys.check_csr(message.csr), nonce)
            self.pending[connection] = message, words
            connection.send(Pending(message.request, nonce))
        else:
            self.sign(connection, message, message.role, message.worker)

    def on_ask(self, connection: Connection, message: AskGrant) -> None:
        self.asked.append(message)
        if self.refused_grants:
            connection.send(Refused(message.request, "not_allowed", "you may not"))
            return
        grant = f"grant-{len(self.asked)}"
        self.data.rights.add(grant)
        connection.send(Granted(message.request, grant, 600.0))

    def sign(self, connection: Connection, message: Enrol | Renew, role: str, identity: str) -> None:
        connection.send(self.enrolled(message.request, message.csr, role, identity))

    def enrolled(self, request: int, csr: bytes, role: str, identity: str) -> Enrolled:
        issued = self.authority.sign(csr, role, identity, "tester")
        renew_s = self.renew_s or issued.renew_s
        authorities = self.authority.authorities
        return Enrolled(request, role, identity, issued.certificate, issued.chain, authorities, renew_s)

    def welcome(self) -> Welcome:
        return replace(super().welcome(), authorities=self.authority.authorities, renew_s=self.renew_s, role="worker")

    # ---- for tests ----

    async def listen(self) -> None:
        door = Door(lambda: Connection(self, accepting=True), self.authority.server_context, "the lab")
        _, self.port = await door.listen("127.0.0.1", self.port)
        self._doors.append(door)

    async def listen_locally(self) -> Path:
        """Open the control socket of the worker's own machine."""
        path = self.folder / "run" / "control.sock"
        path.parent.mkdir(exist_ok=True)
        loop = asyncio.get_running_loop()
        self._unix = await loop.create_unix_server(lambda: Connection(self, accepting=True), str(path))
        return path

    async def hang_up(self) -> None:
        for door in self._doors:
            door.close()
        if self.connection is not None:
            self.connection.close()
        await self.until(lambda: self.connection is None)

    async def says(self, worker: Worker, words: str) -> None:
        """Wait until the worker has logged it."""
        await self.until(lambda: words in worker.log_text())

    def rotate(self) -> None:
        """A new authority; nobody is told."""
        self.authority.rotate(3600)
        self.cluster = self.authority.cluster

    @asynccontextmanager
    async def advertised(self, port: int = 0, *, cluster: str = "", name: str = "lab") -> AsyncIterator[None]:
        what = Advertisement(cluster or self.cluster, name, "127.0.0.1", port or self.port, LOOPBACK)
        advertiser = Advertiser(what)
        await advertiser.start()
        try:
            yield
        finally:
            await advertiser.close()

    def token_file(self) -> Path:
        path = self.folder / "token"
        path.write_text(format_token(self.token) + "\n", "ascii")
        return path

    def new_identity(self, identity: str = "0123456789abcdef", role: str = "worker") -> Identity:
        key = keys.new_key()
        enrolled = self.enrolled(1, key.csr, role, identity)
        return enrolment.assemble(enrolled, key, role=role, name="lab", source="token")

    def give(self, identity: Identity | None = None) -> Identity:
        """Put an identity in place for the worker."""
        identity = identity or self.new_identity()
        self.identity_folder.save(identity)
        return identity

    @property
    def identity_folder(self) -> IdentityFolder:
        return IdentityFolder(self.folder / "state" / "dworker" / "identity")

    def kept(self) -> Identity:
        """The identity that the worker has on disk."""
        identity = self.identity_folder.load()
        assert identity is not None
        return identity

    @property
    def enrols(self) -> list[Enrol]:
        return self.messages(Enrol)

    def approve(self) -> None:
        """Let everybody in who waits."""
        assert self.pending is not None
        for connection, (message, _) in self.pending.items():
            self.sign(connection, message, message.role, message.worker)
        self.pending.clear()

    async def close(self) -> None:
        for door in self._doors:
            door.close()
        if self._unix is not None:
            self._unix.close()
        await super().close()


class Rogue(TrustLab):
    """Somebody who listens and advertises like the coordinator, without its key. It would let everybody in."""

    def __init__(self, real: TrustLab, claims: list[bytes] | None) -> None:
        folder = real.folder / f"rogue{secrets.token_hex(4)}"
        folder.mkdir()
        super().__init__(folder)
        self.cluster = real.cluster
        self.claims = claims


@asynccontextmanager
async def rogue(real: TrustLab, claims: list[bytes] | None = None) -> AsyncIterator[Rogue]:
    """One that listens. `claims`: what it says its authorities are; None: its own."""
    liar = Rogue(real, claims)
    await liar.listen()
    try:
        yield liar
    finally:
        await liar.close()


def in_trust_lab(test: Callable[[TrustLab], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """As `in_lab`, with a TrustLab."""
    return in_lab_of(TrustLab, test)
