"""What the coordinator has told dcoord-web of whom to trust: the TLS context, the key of grants, who is refused.

Owns the newest WebTrust and what is made of it. It comes over the control socket alone and is never written down.
Must not know HTTP, nor which role may do what.
"""

import logging
import ssl
import time
from collections.abc import Callable
from typing import Final

from districomp import tls
from districomp.errors import TrustError
from districomp.messages import WebTrust
from districomp.tokens import cluster_id

log = logging.getLogger(__name__)

GRANT_KEY_BYTES_MIN: Final = 16


class Trust:
    """Whom to trust as of now. `insecure` is this process' own configuration, and no message changes it."""

    def __init__(self, *, insecure: bool) -> None:
        self.insecure = insecure
        self.is_known = insecure
        """Whether anybody can be let in: the coordinator has said how, and it is as the configuration says."""
        self.clusters: frozenset[str] = frozenset()
        """The ids of the authorities whose certificates are good."""
        self.server_names: frozenset[str] = frozenset()
        """The names by which clients know the coordinator's certificates."""
        self.refused: frozenset[str] = frozenset()
        """Identities that were revoked."""
        self.grant_key = b""
        self._ahead_s = time.time() - time.monotonic()
        # Without a certificate every handshake fails: nobody is let in before it is known whom to let in.
        self._context: ssl.SSLContext | None = None if insecure else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._watchers: list[Callable[[], None]] = []

    def coordinator_now(self) -> float:
        """The time by which grants expire: the coordinator's, which does not follow a clock that is set."""
        return time.monotonic() + self._ahead_s

    def context(self) -> ssl.SSLContext | None:
        """The TLS context of a new connection to the data port, None if that is plain."""
        return self._context

    def watch(self, changed: Callable[[], None]) -> None:
        """Call this after each update."""
        self._watchers.append(changed)

    def update(self, message: WebTrust) -> None:
        """Take the coordinator's word. What cannot be used is logged, and what held before holds on."""
        is_insecure = not message.certificate
        if is_insecure != self.insecure:
            self.is_known = False
            log.error(
                "the coordinator is %s, and dcoord.yaml as this process read it says otherwise; nobody is let in at the"
                " data port until both are restarted",
                "insecure" if is_insecure else "not insecure",
            )
            return
        if not is_insecure:
            if len(message.grant_key) < GRANT_KEY_BYTES_MIN:
                log.error("the coordinator sent a key of grants that is too short; the data port goes on as before")
                return
            try:
                self._context = tls.server_context(message.certificate, message.key, message.authorities)
            except TrustError as error:
                log.error("what the coordinator sent for the data port cannot be used: %s", error)
                return
        self.clusters = frozenset(map(cluster_id, message.authorities))
        self.server_names = frozenset(map(tls.server_name, self.clusters))
        self.refused = frozenset(message.refused)
        self.grant_key = message.grant_key
        if message.now:
            self._ahead_s = message.now - time.monotonic()
        self.is_known = True
        for changed in self._watchers:
            changed()
