"""The client lab's coordinator with a real authority behind real TLS, and identities made by it."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dcoord.authority import Authority
from districomp import keys, tls
from districomp.identity import Identity, IdentityFolder
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    AskGrant,
    Authorities,
    Enrol,
    Enrolled,
    Granted,
    HelloClient,
    HelloGuest,
    Message,
    Refused,
    Renew,
    Welcome,
)
from districomp.tokens import JoinToken, authority_hash, format_token
from tests.integration.clientlab import Lab

SECRET = b"0123456789abcdef"
IDENTITY = "0123456789abcdef"


class TrustLab(Lab):
    """A coordinator behind TLS. `peers` are whose certificates came, None for one without."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.authority = Authority.open(folder, "lab", clock=clock)
        self.cluster = self.authority.cluster
        self.renew_s = 0.0
        self.user = "alice"
        self.before_next: list[Message] = []
        """Said on a connection before the answer to its next request."""
        self.renewal: Refused | None = None
        self.peers: list[tls.Holder | None] = []
        self.refused: list[str] = []
        """Why handshakes failed."""
        self._granted = 0

    @property
    def where(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def token(self, role: str = "submit", secret: bytes = SECRET) -> str:
        return format_token(JoinToken(role, authority_hash(self.authority.authorities[0]), secret))

    def identity(self, role: str = "submit", name: str = "alice@lab") -> Identity:
        """A certificate as enrolment gives it."""
        key = keys.new_key()
        issued = self.authority.sign(key.csr, role, IDENTITY, name)
        return Identity(
            cluster=self.authority.cluster,
            name="lab",
            role=role,
            identity=IDENTITY,
            authorities=self.authority.authorities,
            certificate=tls.to_pem([issued.certificate]),
            key=key.key,
            source="token",
            addresses=[self.where],
            pin=self.authority.cluster,
        )

    # ---- the server ----

    def _secured(self, connection: socket.socket) -> socket.socket | None:
        try:
            secured = self.authority.server_context().wrap_socket(connection, server_side=True)
        except (ssl.SSLError, OSError) as error:
            with self._changed:
                self.refused.append(str(error))
                self._changed.notify_all()
            connection.close()
            return None
        with self._changed:
            self.peers.append(tls.holder(secured.getpeercert()))
        return secured

    def _answers(self, key: int, message: AnyMessage) -> Iterator[Message]:
        if isinstance(message, HelloGuest):
            return iter([Authorities(self.cluster, "lab", self.authority.authorities)])
        if isinstance(message, HelloClient):
            return iter([self.greeting or self._welcome()])
        if isinstance(message, Enrol):
            if message.secret != SECRET:
                return iter([Refused(message.request, "token_expired", "this token has expired")])
            return iter([self._enrolled(message.request, message.csr, message.role)])
        if isinstance(message, Renew):
            return iter([self.renewal or self._enrolled(message.request, message.csr, "submit")])
        if isinstance(message, AskGrant):
            self._granted += 1
            return iter([Granted(message.request, f"{self._granted} {message.verb} {message.path}", 600.0)])
        said, self.before_next = self.before_next, []
        return iter([*said, *super()._answers(key, message)]) if said else super()._answers(key, message)

    def _welcome(self) -> Welcome:
        return Welcome(
            PROTOCOL_VERSION,
            self.authority.cluster,
            "lab",
            1,
            15.0,
            self.data_url,
            0.0,
            "submit",
            self.user,
            self.authority.authorities,
            self.renew_s,
        )

    def _enrolled(self, request: int, csr: bytes, role: str) -> Enrolled:
        issued = self.authority.sign(csr, role, IDENTITY, "alice@lab")
        return Enrolled(
            request, role, IDENTITY, issued.certificate, issued.chain, self.authority.authorities, issued.renew_s
        )


@contextlib.contextmanager
def trusted(folder: Path, clock: Callable[[], float] = time.time) -> Iterator[TrustLab]:
    """A coordinator with an authority of its own, below a folder, that listens."""
    lab = TrustLab(folder, clock)
    lab.start()
    try:
        yield lab
    finally:
        lab.stop()


def kept(state: Path) -> Identity:
    """The client's identity as it is on disk."""
    identity = IdentityFolder(state / "client").load()
    assert identity is not None
    return identity


def keep(state: Path, identity: Identity) -> None:
    IdentityFolder(state / "client").save(identity)
