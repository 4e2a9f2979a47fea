"""The cluster's authority in the simulator: certificates that nobody can forge, because nobody here tries.

Survives crashes of the coordinator, as files do. A key is bytes, its signing request and its public half are the same.
"""

from typing import Final

import msgspec

from dcoord.core.rights import Principal
from districomp.tokens import cluster_id

AUTHORITY_S: Final = 1e9


class Certificate(msgspec.Struct, frozen=True):
    """What a certificate says. `authority`: the cluster id of who issued it; `expires`: by the coordinator's clock."""

    authority: str
    role: str
    identity: str
    name: str
    expires: float


class Authority:
    """Issues, and knows its own again."""

    def __init__(self, certificate_s: float) -> None:
        self.certificate_s = certificate_s
        self.authorities: list[bytes] = [b"authority 1"]
        self.until: list[float] = [AUTHORITY_S]
        self._made = 1

    def issue(self, role: str, identity: str, name: str, now: float) -> bytes:
        """A certificate for whoever has the key."""
        authority = cluster_id(self.authorities[0])
        return msgspec.msgpack.encode(Certificate(authority, role, identity, name, now + self.certificate_s))

    def rotate(self, overlap_s: float, now: float) -> None:
        """A new authority; the old one is good for a while."""
        self._made += 1
        self.authorities = [b"authority %d" % self._made, *self.authorities]
        self.until = [AUTHORITY_S, *(min(until, now + overlap_s) for until in self.until)]

    def expire(self, now: float) -> bool:
        """Forget those whose time is over; whether there were any."""
        count = sum(until > now for until in self.until)
        is_changed = count < len(self.until)
        self.authorities, self.until = self.authorities[:count], self.until[:count]
        return is_changed

    def is_current(self, shown: bytes) -> bool:
        """Whether a certificate is of an authority that is known still."""
        certificate = msgspec.msgpack.decode(shown, type=Certificate)
        return certificate.authority in [cluster_id(one) for one in self.authorities]

    def principal(self, shown: bytes, now: float) -> Principal | None:
        """Whom a certificate proves, as a handshake does; None: it proves nobody."""
        certificate = msgspec.msgpack.decode(shown, type=Certificate)
        known = [cluster_id(one) for one, until in zip(self.authorities, self.until, strict=True) if until > now]
        if certificate.authority not in known or certificate.expires <= now:
            return None
        user = "" if certificate.role == "worker" else certificate.identity
        return Principal(
            certificate.role, certificate.identity, user, certificate.name, certificate.expires, certificate.authority
        )
