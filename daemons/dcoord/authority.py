"""The cluster's own certificate authority: who the coordinator is, and who is let in.

Owns the authorities' keys and certificates, the certificates made by them, rotation, and the key of grants. Must not
know who may have a certificate (`core/trust.py`), nor of connections. Clocks may be wrong when a machine boots, so an
authority is valid from the beginning of time, and its end is never before ten years after this was written.
"""

import datetime
import hashlib
import ipaddress
import itertools
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec.structs import replace

from dcoord.authority_file import VERSION, AuthorityFile, Kept, KeptAuthority
from districomp import keys, tls
from districomp.errors import TrustError
from districomp.tokens import cluster_id

log = logging.getLogger(__name__)

AUTHORITY_S: Final = 3650 * 86400.0
LEAF_S: Final = 30 * 86400.0
BACKDATED_S: Final = 86400.0
"""A machine whose clock is a day behind, and which judges the time, believes in a new certificate."""
AUTHORITIES_MAX: Final = 4
"""How many may overlap: the newest, and those that a rotation has left some time."""
NAME_CHARS_MAX: Final = 64
WARN_S: Final = 365 * 86400.0

_BEGINNING: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST: Final = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
_WRITTEN: Final = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC).timestamp()
"""When this was written: a clock that shows an earlier time is wrong."""
_GRANT_KEY_BYTES: Final = 32
_CONSTRAINTS: Final = x509.NameConstraints(
    permitted_subtrees=[x509.DNSName(tls.DOMAIN)],
    excluded_subtrees=[
        x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
        x509.IPAddress(ipaddress.ip_network("::/0")),
    ],
)
"""Who gives an authority to a browser or a system to trust does not let it speak for any other site."""


class Issued(NamedTuple):
    """A certificate (DER), those to be shown with it, when it ends (Unix seconds), after how many seconds to renew it."""

    certificate: bytes
    chain: list[bytes]
    expires: float
    renew_s: float


class _Current(NamedTuple):
    """The authorities as they are, and the newest one's certificate and key: replaced as one, never changed."""

    kept: Kept
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return "_Current(...)"

    @property
    def clusters(self) -> list[str]:
        return [cluster_id(authority.certificate) for authority in self.kept.authorities]


class _Server(NamedTuple):
    """The coordinator's own TLS context, of which authorities it is, and from when to when it is to be used."""

    context: ssl.SSLContext
    current: _Current
    since: float
    until: float


class Authority:
    """What signs. `rotate` waits for the disk and may run in a thread; every other call takes a millisecond or so."""

    def __init__(self, file: AuthorityFile, kept: Kept, lifetime_s: float, clock: Callable[[], float]) -> None:
        self._file = file
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._changing = threading.Lock()
        self._current = _loaded(kept)
        self._server: _Server | None = None

    @classmethod
    def open(
        cls, folder: Path, cluster_name: str, lifetime_s: float = 30 * 86400.0, clock: Callable[[], float] = time.time
    ) -> "Authority":
        """The authority of a folder, made at the first start. lifetime_s: of the certificates that it signs.

        Raises:
            ConfigError: the folder cannot be used, others can read the key, or what is there is damaged.
        """
        file = AuthorityFile(folder)
        with file.opened() as opened:
            kept = file.read(opened)
            if kept is None:
                key, certificate = _new_authority(cluster_name, clock())
                kept = _kept(key, [KeptAuthority(_der(certificate), _end(certificate))])
                file.write(opened, kept)
                log.info("a new cluster: %s", cluster_id(kept.authorities[0].certificate))
        try:
            authority = cls(file, kept, lifetime_s, clock)
        except (ValueError, TypeError, IndexError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion):
            # `from None`: nothing of the key may get into a traceback.
            raise file.damaged() from None
        authority.expire(clock())
        if authority.until[0] < clock() + WARN_S:
            log.warning("the cluster's authority ends %s: dctl ca rotate", _moment(authority.until[0]).date())
        return authority

    def __repr__(self) -> str:
        return f"Authority({self.cluster})"

    # ---- who the cluster is ----

    @property
    def cluster(self) -> str:
        """The id of the cluster, by its newest authority."""
        return self._current.clusters[0]

    @property
    def authorities(self) -> list[bytes]:
        """The certificates (DER) that the coordinator can be known by, the newest first."""
        return [authority.certificate for authority in self._current.kept.authorities]

    @property
    def until(self) -> list[float]:
        """When each of them ends, in Unix seconds."""
        return [authority.until for authority in self._current.kept.authorities]

    @property
    def grant_key(self) -> bytes:
        """What grants are signed with; another one after a rotation."""
        return self._current.kept.grant_key

    # ---- the coordinator's own certificates ----

    def coordinator_chain(self) -> tuple[bytes, bytes]:
        """A new key's certificate with what proves it to whoever trusts a former authority, and that key (both PEM)."""
        return self._chain(self._current)

    def web_chain(self) -> tuple[bytes, bytes]:
        """The same for the data port: with a key of its own, and a name by which it cannot pose as the coordinator."""
        current = self._current
        return self._chain(current, [tls.data_name(cluster) for cluster in current.clusters])

    @property
    def chain_renew_s(self) -> float:
        """After how many seconds `coordinator_chain` and `web_chain` are due again."""
        return LEAF_S * 2 / 3

    def server_context(self) -> ssl.SSLContext:
        """For connections that are taken now; ask for each, for it changes with the authorities and with time."""
        now, current, server = self._clock(), self._current, self._server
        if server is None or server.current is not current or not server.since <= now < server.until:
            authorities = [authority.certificate for authority in current.kept.authorities]
            context = tls.server_context(*self._chain(current), authorities)
            server = self._server = _Server(context, current, now, now + self.chain_renew_s)
        return server.context

    def _chain(self, current: _Current, more: Sequence[str] = ()) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        own = [tls.server_name(cluster) for cluster in current.clusters]
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in (*own, *more)])
        # One without a subject must have its alternative names marked as critical (RFC 5280, 4.2.1.6).
        use = ExtendedKeyUsageOID.SERVER_AUTH
        leaf = self._leaf(current, x509.Name([]), names, key.public_key(), use=use, lifetime_s=LEAF_S)
        crosses = [authority.cross for authority in current.kept.authorities if authority.cross]
        return tls.to_pem([_der(leaf), *crosses]), keys.private_pem(key)

    # ---- others' certificates ----

    def sign(self, csr_der: bytes, role: str, identity: str, name: str) -> Issued:
        """A certificate for the key of a request, of which nothing else is used; the name is for people.

        Raises:
            TrustError: the request is damaged, or not for a key on P-256; or no certificate can be for such a holder.
        """
        if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise TrustError(f"a name has 1 to {NAME_CHARS_MAX} printable characters")
        current = self._current
        uri = tls.holder_uri(current.clusters[0], role, identity)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        # Not the common name: OpenSSL takes one with a dot for a server's, which the constraint of names forbids.
        subject = x509.Name([x509.NameAttribute(NameOID.USER_ID, name)])
        key = keys.requested_key(csr_der)
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        leaf = self._leaf(current, subject, names, key, use=use, lifetime_s=self._lifetime_s)
        expires = _end(leaf)
        left_s = max(0.0, min(self._lifetime_s, expires - self._clock()))
        # Its chain is empty: whoever judges it trusts every authority that has not ended.
        return Issued(_der(leaf), [], expires, left_s * 2 / 3)

    def _leaf(
        self,
        current: _Current,
        subject: x509.Name,
        names: x509.SubjectAlternativeName,
        key: ec.EllipticCurvePublicKey,
        *,
        use: x509.ObjectIdentifier,
        lifetime_s: float,
    ) -> x509.Certificate:
        now = self._clock()
        until = min(now + lifetime_s, current.kept.authorities[0].until)
        builder = (
            x509.CertificateBuilder()
            .not_valid_before(_moment(min(now, until) - BACKDATED_S))
            .not_valid_after(_moment(until))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
            .add_extension(names, critical=not subject.rdns)
        )
        return _sign(builder, subject, key, current.certificate.subject, current.key)

    # ---- rotation ----

    def rotate(self, overlap_s: float) -> None:
        """Make a new authority; those before it are good for `overlap_s` more at the most, their key is destroyed.

        It is on disk when this returns; when it raises, the old one goes on. What was signed with the grant key is void.

        Raises:
            TrustError: too many overlap already.
            ConfigError: it cannot be written.
        """
        with self._changing:
            now = self._clock()
            kept = _rotated(self._current, now, overlap_s)
            with self._file.opened() as opened:
                self._file.write(opened, kept)
            self._current = _loaded(kept)

    def expire(self, now: float) -> bool:
        """Forget the former authorities that have ended; whether there were any.

        The file keeps them until the next rotation: a clock that is wrong at one start must not cost them.
        """
        with self._changing:
            living = _living(self._current.kept, now)
            if living is self._current.kept:
                return False
            self._current = _loaded(living)
            return True


def _loaded(kept: Kept) -> _Current:
    """To work with. ValueError, TypeError, IndexError, InvalidSignature, UnsupportedAlgorithm, InvalidVersion: it is damaged."""
    certificates = [x509.load_der_x509_certificate(authority.certificate) for authority in kept.authorities]
    key = serialization.load_pem_private_key(kept.key.encode("ascii"), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificates[0].public_key():
        raise ValueError("the key is not the newest authority's")
    if len(kept.grant_key) != _GRANT_KEY_BYTES:
        raise ValueError("the key of grants has another size")
    for newer, older in itertools.pairwise(range(len(certificates))):
        x509.load_der_x509_certificate(kept.authorities[newer].cross).verify_directly_issued_by(certificates[older])
    return _Current(kept, certificates[0], key)


def _living(kept: Kept, now: float) -> Kept:
    """Without the former authorities that have ended; the very same if there are none."""
    living = [kept.authorities[0], *(a for a in kept.authorities[1:] if a.until > now)]
    if len(living) == len(kept.authorities):
        return kept
    # Nobody trusts the one any more that has signed this.
    living[-1] = replace(living[-1], cross=b"")
    return replace(kept, authorities=living)


def _rotated(current: _Current, now: float, overlap_s: float) -> Kept:
    """A new authority before those that are left. TrustError if these are too many."""
    former: list[KeptAuthority] = []
    if overlap_s > 0:
        living = _living(current.kept, now).authorities
        # None outlives the one after it, which its proof of the newest leads through.
        until = min(now + overlap_s, living[0].until)
        former = [KeptAuthority(a.certificate, min(a.until, until), a.cross) for a in living]
    if len(former) >= AUTHORITIES_MAX:
        raise TrustError(
            f"{AUTHORITIES_MAX} authorities overlap already: wait until {_moment(former[-1].until):%d %B %Y %H:%M} UTC,"
            " or end the former ones at once: dctl ca rotate --overlap 0s"
        )
    key, certificate = _new_authority(_common_name(current.certificate), now)
    cross = b""
    if former:
        until = former[0].until
        cross = _der(_sign_authority(certificate.subject, key.public_key(), until, current.certificate, current.key))
    return _kept(key, [KeptAuthority(_der(certificate), _end(certificate), cross), *former])


def _kept(key: ec.EllipticCurvePrivateKey, authorities: list[KeptAuthority]) -> Kept:
    # The key of grants is another one each time: whoever has read the one has read the other.
    return Kept(VERSION, keys.private_pem(key).decode("ascii"), secrets.token_bytes(_GRANT_KEY_BYTES), authorities)


def _new_authority(name: str, now: float) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A key, and the certificate that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    # The key's own part keeps the authorities of one name apart, for people and for whoever builds chains.
    digest = hashlib.sha256(keys.spki_of(key.public_key())).hexdigest()[:16]
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "districomp"),
            x509.NameAttribute(NameOID.COMMON_NAME, name[:NAME_CHARS_MAX]),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, digest),
        ]
    )
    return key, _sign_authority(subject, key.public_key(), max(now, _WRITTEN) + AUTHORITY_S, None, key)


def _sign_authority(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    until: float,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate of an authority: its own without an issuer, else that by which another one vouches for it."""
    builder = (
        x509.CertificateBuilder()
        .not_valid_before(_BEGINNING)
        .not_valid_after(_moment(until))
        .add_extension(x509.BasicConstraints(ca=True, path_length=AUTHORITIES_MAX - 1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(_CONSTRAINTS, critical=True)
    )
    return _sign(builder, subject, key, issuer.subject if issuer else subject, issuer_key)


def _sign(
    builder: x509.CertificateBuilder,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    return (
        builder.subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    """An authority signs certificates, everybody else signs handshakes; nobody does both."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(certificate: x509.Certificate) -> str:
    value = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _end(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _moment(time_s: float) -> datetime.datetime:
    """Unix seconds as X.509 can say them, the nearest that it can."""
    seconds = min(max(time_s, 0.0), _LAST.timestamp())
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
