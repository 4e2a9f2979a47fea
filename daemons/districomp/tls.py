"""TLS contexts as everybody here uses them, and what a verified certificate says of its holder.

TLS 1.3 only; no session is ever resumed, for it would outlive its certificate. Whoever connects verifies the cluster's
authority and name, never an address and never the time (a booted PC may have any); the coordinator judges the time too.
Must not import `cryptography`: a command that only connects starts without it. `keys.py` makes what is loaded here.
"""

import base64
import contextlib
import os
import re
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from districomp.errors import TrustError

DOMAIN: Final = "districomp.internal"
"""The authorities are constrained to names below it; nobody can register it (`internal` is reserved for private use)."""
CERTIFICATES_MAX: Final = 64
PEM_BYTES_MAX: Final = 256 * 1024

NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME (OpenSSL >= 1.1.0), which Python has no name for."""

_HOLDER: Final = re.compile(r"districomp://([a-z2-7]{26})/(worker|submit|admin|read)/([A-Za-z0-9][A-Za-z0-9_.-]{0,63})")
_BLOCK: Final = re.compile(r"-----BEGIN CERTIFICATE-----\s(.*?)\s-----END CERTIFICATE-----", re.DOTALL)


class Holder(NamedTuple):
    """Whose certificate it is. `cluster`: the id of the authority that issued it; `expires` in Unix seconds."""

    cluster: str
    role: str
    identity: str
    name: str
    expires: float

    @property
    def user(self) -> str:
        """Whose the jobs are that it submits: the name is its own choice, the identity is not."""
        return f"{self.name}/{self.identity}"


def server_name(cluster: str) -> str:
    """What the coordinator's certificate must be for, by the id of the cluster."""
    return f"dcoord.{cluster}.{DOMAIN}"


def data_name(cluster: str) -> str:
    """What the data port's certificate is for beside `server_name`: by this it can be told from the coordinator's."""
    return f"data.{cluster}.{DOMAIN}"


def check_coordinator(peercert: Mapping[str, Any] | None, where: str) -> None:
    """TrustError if a verified certificate is the data port's: dcoord-web has the key of that one alone.

    Without this a stolen key of the data port could pose as the coordinator on the control port.
    """
    for kind, name in (peercert or {}).get("subjectAltName", ()):
        if kind == "DNS" and name.startswith("data."):
            raise TrustError(f"{where} shows the certificate of a data port: it is not the coordinator")


def holder_uri(cluster: str, role: str, identity: str) -> str:
    """The name in a holder's certificate. TrustError if it could not be read back."""
    text = f"districomp://{cluster}/{role}/{identity}"
    if not _HOLDER.fullmatch(text):
        raise TrustError(f"no certificate can be for role {role!r:.40} and identity {identity!r:.80}")
    return text


def client_context(authorities: Sequence[bytes], certificate: bytes = b"", key: bytes = b"") -> ssl.SSLContext:
    """For whoever connects: the server must be of one of these authorities (DER) and have the name that is asked for.

    certificate: who we are (PEM, the chain after it), with its key (PEM). TrustError if these are damaged.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    # The certificates' times are the coordinator's to judge; this clock may be years off.
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    _trust(context, authorities)
    if certificate:
        load_chain(context, certificate, key)
    return context


def unverified_context() -> ssl.SSLContext:
    """To ask a stranger for its authorities, and for nothing else: no secret may go where this leads."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(certificate: bytes, key: bytes, authorities: Sequence[bytes]) -> ssl.SSLContext:
    """For who is connected to: a peer may have no certificate, but one that it has must be good, its time too.

    certificate: PEM with its chain. authorities: DER. TrustError if something is damaged.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # OP_NO_TICKET does not stop those of TLS 1.3
    _trust(context, authorities)
    load_chain(context, certificate, key)
    return context


def load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Give a context its certificate (PEM, the chain after it) and key (PEM), which never get a name on a disk.

    TrustError if they are damaged or do not belong together.
    """
    with _as_file(key + b"\n" + certificate) as path:
        try:
            # An empty password, or OpenSSL would ask on the terminal for that of an encrypted key.
            context.load_cert_chain(path, password="")
        except (ssl.SSLError, ValueError):
            # `from None`: nothing of the key may get into a traceback.
            raise TrustError("the certificate and its key are damaged, or do not belong together") from None


def holder(peercert: Mapping[str, Any] | None) -> Holder | None:
    """Whose a certificate is that OpenSSL has verified (`getpeercert()`); None without one, or if it is no identity's."""
    if not peercert:
        return None
    names = peercert.get("subjectAltName", ())
    found = _HOLDER.fullmatch(names[0][1]) if len(names) == 1 and names[0][0] == "URI" else None
    if found is None:
        return None
    subject = [value for part in peercert.get("subject", ()) for kind, value in part if kind == "userId"]
    expires = float(ssl.cert_time_to_seconds(peercert["notAfter"]))
    return Holder(found[1], found[2], found[3], subject[0] if subject else "", expires)


def to_pem(certificates: Sequence[bytes]) -> bytes:
    """Certificates (DER) as PEM, one after the other."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, certificates)).encode("ascii")


def from_pem(text: bytes) -> list[bytes]:
    """The certificates (DER) in a PEM text, other things in it left out. TrustError if one is damaged."""
    if len(text) > PEM_BYTES_MAX:
        raise TrustError(f"certificates of more than {PEM_BYTES_MAX // 1024} KiB are not read")
    try:
        # Python's own way back leaves out what is no base64.
        blocks = _BLOCK.findall(text.decode("ascii"))
        return [base64.b64decode("".join(block.split()), validate=True) for block in blocks]
    except ValueError:  # binascii.Error and UnicodeDecodeError are
        raise TrustError("a certificate is damaged") from None


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    return context


def _trust(context: ssl.SSLContext, authorities: Sequence[bytes]) -> None:
    if not 0 < len(authorities) <= CERTIFICATES_MAX:
        raise TrustError(f"{len(authorities)} authorities are not between 1 and {CERTIFICATES_MAX}")
    try:
        context.load_verify_locations(cadata=b"".join(authorities))
    except (ssl.SSLError, ValueError):
        raise TrustError("the certificate of the cluster's authority is damaged") from None
    if len(context.get_ca_certs(binary_form=True)) != len(set(authorities)):
        raise TrustError("what should be the cluster's authority is none")


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path at which these bytes can be read: of memory where the system has that, else of a file that goes at once."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        file = os.memfd_create("districomp", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{file}"
    else:
        file, path = tempfile.mkstemp(prefix="districomp-")
    try:
        with os.fdopen(file, "wb") as opened:
            opened.write(data)
            opened.flush()
            yield path
    finally:
        if not path.startswith("/proc/"):
            Path(path).unlink()
