"""A client's sockets: connected to a path, by TCP, or by TLS, and what a failure means to a person.

Owns the handshake and its errors. Must not know messages. `ssl` is imported for the first address that needs it.
"""

import errno
import socket
from typing import TYPE_CHECKING, Final, Protocol

from districomp.client_address import PLAIN, Address
from districomp.errors import DistricompError, NotAllowedError, TrustError

if TYPE_CHECKING:
    import ssl

CONNECT_S: Final = 5.0
KEEPALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A watch may be silent for hours: only the kernel's probes tell a quiet peer from one that is gone."""


class LinkLostError(DistricompError):
    """The connection broke; the request may be repeated on another."""


class BrokenOffError(LinkLostError):
    """The peer accepted the connection and broke it off before it had answered. `is_proven`: it was our coordinator."""

    def __init__(self, message: str, *, is_proven: bool = False) -> None:
        super().__init__(message)
        self.is_proven = is_proven


class Credentials(Protocol):
    """Whom a client trusts, and how it proves who it is."""

    def context(self) -> "tuple[ssl.SSLContext, str]":
        """For a new connection: the context, and the name that the peer must prove. TrustError if there is no identity."""


def connected(address: Address, credentials: Credentials) -> socket.socket:
    """A connected socket, by TLS where the address says so.

    LinkLostError if nobody is there, NotAllowedError if we may not connect, TrustError if it is not our coordinator.
    """
    try:
        if address.path is not None:
            return _connected_path(address)
        if address.plain:
            return _connected_tcp(address)
        context, name = credentials.context()
        return _secured(_connected_tcp(address), address, context, name)
    except PermissionError as error:
        raise NotAllowedError(
            f"{address}: you may not use this control socket; become its owner or a member of its group"
        ) from error
    except FileNotFoundError as error:
        raise LinkLostError(f"there is no {address}") from error
    except OSError as error:
        what = "nobody listens" if error.errno == errno.ECONNREFUSED else str(error)
        raise LinkLostError(f"{address}: {what}") from error


def _connected_path(address: Address) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(CONNECT_S)
        link.connect(str(address.path))
    except BaseException:
        link.close()
        raise
    return link


def _connected_tcp(address: Address) -> socket.socket:
    link = socket.create_connection((address.host, address.port), timeout=CONNECT_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return link


def _secured(link: socket.socket, address: Address, context: "ssl.SSLContext", name: str) -> socket.socket:
    """The same connection, once its peer has proved the name."""
    import ssl

    from districomp.tls import check_coordinator

    try:
        secured = context.wrap_socket(link, server_hostname=name)
        try:
            check_coordinator(secured.getpeercert(), str(address))
        except TrustError:
            secured.close()
            raise
        return secured
    except ssl.SSLCertVerificationError as error:
        link.close()
        raise TrustError(
            f"{address} is not the coordinator of your cluster: it cannot prove to be {name} ({error.verify_message}). "
            "Nothing was sent to it. If the cluster was made anew, join it again: dctl join TOKEN"
        ) from error
    except ssl.SSLError as error:
        link.close()
        if refusal := refused_certificate(error):
            raise TrustError(f"the coordinator at {address} {refusal}") from error
        raise LinkLostError(
            f"{address} does not speak TLS 1.3 as a coordinator does ({error.reason or error}); "
            f"an insecure one of this machine is written {PLAIN}127.0.0.1:PORT"
        ) from error
    except TimeoutError as error:
        link.close()
        raise LinkLostError(f"{address} does not answer within {CONNECT_S:g} s") from error
    except ConnectionError as error:
        link.close()
        raise BrokenOffError(f"{address} broke the connection off: {error}") from error
    except BaseException:
        link.close()
        raise


def refused_certificate(error: OSError) -> str:
    """What a TLS alert says of the certificate that we showed, for a person; '' if the error is none."""
    reason = str(getattr(error, "reason", "") or "")
    if "ALERT" not in reason:
        return ""
    if "EXPIRED" in reason:
        return "refuses our certificate, because it has expired; join again: dctl join TOKEN"
    for sign in ("UNKNOWN_CA", "CERTIFICATE", "ACCESS_DENIED", "DECRYPT_ERROR"):
        if sign in reason:
            return f"refuses our certificate ({reason.replace('_', ' ').lower()}); join again: dctl join TOKEN"
    return ""
