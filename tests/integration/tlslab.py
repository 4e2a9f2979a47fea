"""Handshakes over loopback, and certificates as an attacker would have them made."""

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from dcoord.authority import Authority
from dcoord.authority_file import Kept
from districomp import tls
from districomp.keys import NewKey, new_key, private_pem
from tests.patience import PATIENCE_S

LIMIT_S = PATIENCE_S
DAY_S = 86400.0
CONFIRMED = b"!"
LOOPBACK = ipaddress.ip_address("127.0.0.1")

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


class Seen(NamedTuple):
    """How a connection went. Both errors are '' when it was confirmed by a byte each way."""

    peercert: dict[str, Any]
    server_error: str
    client_error: str
    version: str
    ticket: bool

    @property
    def good(self) -> bool:
        return not self.server_error and not self.client_error


Handshake = Callable[[ssl.SSLContext, ssl.SSLContext, str], Seen]


class _Ends:
    """What the two ends of a connection have to tell."""

    def __init__(self) -> None:
        self.peercert: dict[str, Any] = {}
        self.server_error = self.client_error = self.version = ""
        self.ticket = False

    def seen(self) -> Seen:
        return Seen(self.peercert, self.server_error, self.client_error, self.version, self.ticket)


def blocking(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Seen:
    """A connection by blocking sockets."""
    ends = _Ends()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        thread = threading.Thread(target=_serve, args=(listener, server, ends))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), LIMIT_S) as plain,
                client.wrap_socket(plain, server_hostname=name) as connection,
            ):
                if connection.recv(1) != CONFIRMED:
                    raise ConnectionError("closed")
                ends.version = connection.version() or ""
                ends.ticket = connection.session is not None and connection.session.has_ticket
                connection.sendall(CONFIRMED)
        except OSError as error:
            ends.client_error = str(error)
        thread.join(LIMIT_S)
    return ends.seen()


def _serve(listener: socket.socket, context: ssl.SSLContext, ends: _Ends) -> None:
    try:
        plain, _ = listener.accept()
        plain.settimeout(LIMIT_S)
        with plain, context.wrap_socket(plain, server_side=True) as connection:
            ends.peercert = dict(connection.getpeercert() or {})
            connection.sendall(CONFIRMED)
            if connection.recv(1) != CONFIRMED:
                raise ConnectionError("closed")
    except OSError as error:
        ends.server_error = str(error)


def by_asyncio(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Seen:
    """A connection by asyncio's streams."""
    return asyncio.run(_by_asyncio(server, client, name))


async def _by_asyncio(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Seen:
    ends = _Ends()
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Plain at first, as the coordinator does it: asyncio says nothing of a handshake that it has refused.
        try:
            await writer.start_tls(server, ssl_handshake_timeout=LIMIT_S)
            ends.peercert = dict(writer.get_extra_info("peercert") or {})
            writer.write(CONFIRMED)
            await reader.readexactly(1)
        except (OSError, EOFError) as error:
            ends.server_error = str(error) or repr(error)
        finally:
            writer.close()
            served.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener, asyncio.timeout(LIMIT_S):
        host, port = listener.sockets[0].getsockname()
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=client, server_hostname=name)
            with contextlib.closing(writer):
                await reader.readexactly(1)
                ends.version = writer.get_extra_info("ssl_object").version()
                writer.write(CONFIRMED)
        except (OSError, EOFError) as error:
            ends.client_error = str(error) or repr(error)
        await served.wait()
    return ends.seen()


class Member(NamedTuple):
    """Somebody who was let in: a key, and the certificate for it."""

    key: NewKey
    certificate: bytes

    def context(self, *authorities: bytes) -> ssl.SSLContext:
        """To connect with, believing in these authorities."""
        return tls.client_context(authorities, tls.to_pem([self.certificate]), self.key.key)


def member(authority: Authority, role: str = "worker", identity: str = "w1", name: str = "pc-1") -> Member:
    key = new_key()
    return Member(key, authority.sign(key.csr, role, identity, name).certificate)


def clock_off_by(offset_s: float) -> Callable[[], float]:
    return lambda: time.time() + offset_s


def kept(folder: Path) -> Kept:
    """What an authority's folder has on disk."""
    return msgspec.json.decode((folder / "authority.json").read_bytes(), type=Kept)


class Forger:
    """Whoever has a key that signs: makes a certificate of any kind with it, right for now unless said otherwise."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        self.certificate = x509.load_der_x509_certificate(certificate)
        loaded = serialization.load_pem_private_key(key, password=None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self.key = loaded

    @classmethod
    def of(cls, folder: Path) -> "Forger":
        """The one whose key an authority's folder has: to break one rule at a time."""
        content = kept(folder)
        return cls(content.authorities[0].certificate, content.key.encode())

    def make(
        self,
        names: list[x509.GeneralName],
        use: x509.ObjectIdentifier | None,
        *,
        ca: bool = False,
        common_name: str = "",
    ) -> tuple[bytes, bytes]:
        """A certificate (DER) and its key (PEM)."""
        private = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.certificate.subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        certificate = builder.sign(self.key, hashes.SHA256())
        return der(certificate), private_pem(private)


def imitation(certificate: bytes) -> Forger:
    """An attacker's own authority: every byte that can be copied is (names, serial number, key identifier), not the key."""
    original = x509.load_der_x509_certificate(certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(original.subject)
        .issuer_name(original.issuer)
        .public_key(key.public_key())
        .serial_number(original.serial_number)
        .not_valid_before(original.not_valid_before_utc)
        .not_valid_after(original.not_valid_after_utc)
    )
    for extension in original.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    copy = builder.sign(key, hashes.SHA256())
    return Forger(der(copy), private_pem(key))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def encrypted(key: bytes) -> bytes:
    """The same key (PEM) with a password on it."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )


def dns(cluster: str) -> list[x509.GeneralName]:
    return [x509.DNSName(tls.server_name(cluster))]


def uri(cluster: str, role: str = "worker", identity: str = "w1") -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(f"districomp://{cluster}/{role}/{identity}")]


def good_for(authority: Authority, cluster: str, known: bytes, who: Member | None = None) -> bool:
    """Whether somebody who believes in `known` can connect."""
    client = who.context(known) if who else tls.client_context([known])
    return blocking(authority.server_context(), client, tls.server_name(cluster)).good
