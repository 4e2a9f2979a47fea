"""The coordinator's trust in action: certificates signed, authorities changed, dcoord-web told what it must know.

Owns when the authority is used, and the order: the core has decided and the journal has committed before anything is
signed here. Decides nothing itself. Without an authority (`insecure`) it does nothing.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from dcoord.core.effects import Rotate, Sign
from dcoord.core.events import AuthoritiesChanged, Events
from districomp import clock
from districomp.errors import DistricompError
from districomp.messages import Authorities, Enrolled, Refused, WebTrust
from districomp.stream import Connection
from districomp.tokens import cluster_id

if TYPE_CHECKING:
    from dcoord.authority import Authority
    from dcoord.listener import Listener
    from districomp.stream import Connection

log = logging.getLogger(__name__)

GUEST_ENDS_S: Final = 1.0
"""A guest that was answered ends its connection itself; one that does not is cut after this."""
NAME_CHARS_MAX: Final = 64


class Trustee:
    """Uses the authority on the driver's behalf. `post` brings an event to the core."""

    def __init__(
        self, authority: "Authority | None", listener: "Callable[[], Listener]", post: Callable[[Events], None]
    ) -> None:
        self._authority = authority
        self._listener = listener
        self._post = post
        self._web_renew_at = 0.0
        self._web_chain = (b"", b"")
        self._web_authorities: list[bytes] = []

    # ---- what others need of it ----

    def context(self) -> ssl.SSLContext | None:
        """TLS for a new connection; None if insecure."""
        return self._authority.server_context() if self._authority is not None else None

    @property
    def grant_key(self) -> bytes:
        """The key of the grants; b'' if insecure."""
        return self._authority.grant_key if self._authority is not None else b""

    @property
    def clusters(self) -> list[str]:
        """The ids that the cluster is known by, the newest first; empty if insecure."""
        return [cluster_id(one) for one in self._authority.authorities] if self._authority is not None else []

    def event(self, rotated: tuple[int, int] | None = None) -> AuthoritiesChanged:
        """The authorities as they are, for the core."""
        if self._authority is None:
            return AuthoritiesChanged([], [], b"", rotated)
        # The authority is dated by the calendar, the core's clock never jumps when somebody sets that.
        until = [end - time.time() + clock.now() for end in self._authority.until]
        return AuthoritiesChanged(self._authority.authorities, until, self.grant_key, rotated)

    # ---- effects ----

    def sign(self, effect: Sign) -> None:
        """Send a certificate to who asked for it."""
        connection = self._listener().connections.get(effect.peer)
        if connection is None or self._authority is None:
            return
        try:
            issued = self._authority.sign(effect.csr, effect.role, effect.identity, effect.name[:NAME_CHARS_MAX])
        except DistricompError as error:
            log.error("no certificate for %s (%s): %s", effect.name, connection.address, error)
            connection.send(Refused(effect.request, "bad_request", str(error)))
            self._end_guest(connection)
            return
        log.info("certificate for %s %s (%s) at %s", effect.role, effect.name, effect.identity, connection.address)
        certificate, chain, _expires, renew_s = issued
        authorities = self._authority.authorities
        connection.send(
            Enrolled(effect.request, effect.role, effect.identity, certificate, chain, authorities, renew_s)
        )
        self._end_guest(connection)

    def _end_guest(self, connection: "Connection") -> None:
        if connection.certificate is None:
            asyncio.get_running_loop().call_later(GUEST_ENDS_S, connection.close)

    async def rotate(self, effect: Rotate) -> None:
        """Make a new authority, in a thread because it waits for the disk; then everybody is told."""
        assert self._authority is not None, "the core refuses to rotate what there is not"
        try:
            await asyncio.to_thread(self._authority.rotate, effect.overlap_s)
        except DistricompError as error:
            connection = self._listener().connections.get(effect.peer)
            if connection is not None:
                connection.send(Refused(effect.request, "bad_request", str(error)))
            return
        log.warning("new authority: the cluster's id is %s from now on", self.clusters[0])
        self._post(self.event((effect.peer, effect.request)))

    def expire(self) -> bool:
        """Forget authorities that have ended; whether there were any."""
        if self._authority is None or not self._authority.expire(time.time()):
            return False
        log.warning("a former authority has ended; what it signed is refused from now on")
        self._post(self.event())
        return True

    def announce(self, cluster: str, name: str, certified: Iterable[Connection]) -> None:
        """Tell those who have a certificate which authorities to trust now; they renew at once."""
        if self._authority is not None:
            for connection in certified:
                connection.send(Authorities(cluster, name, self._authority.authorities))

    # ---- dcoord-web ----

    def web_trust(self, refused: list[str]) -> WebTrust:
        """What dcoord-web must know; its certificate is made anew when it is due."""
        authority, now = self._authority, clock.now()
        if authority is None:
            return WebTrust(b"", b"", [], b"", [], now)
        # Read before the chain is made: a rotation may come between, and then this is done again.
        authorities = authority.authorities
        if now >= self._web_renew_at or self._web_authorities != authorities:
            self._web_chain = authority.web_chain()
            self._web_authorities = authorities
            self._web_renew_at = now + authority.chain_renew_s
        return WebTrust(*self._web_chain, authorities, authority.grant_key, refused, now)

    def web_is_due(self) -> bool:
        """Whether dcoord-web's certificate is to be made anew."""
        return self._authority is not None and clock.now() >= self._web_renew_at
