"""An HTTP connection to the data port whose other end has proved to be of our cluster.

Owns whom to believe there. Must not know what is asked, nor grants.
"""

import http.client
import ssl
from urllib.parse import urlsplit

from districomp.client_pool import DataPlace
from districomp.errors import RemoteProtocolError, TrustError


class _VerifiedConnection(http.client.HTTPConnection):
    """HTTPS to a cluster: its name is proved, never the address by which it was reached."""

    default_port = 443

    def __init__(self, host: str, port: int | None, timeout_s: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._context = context
        self._name = name

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        """As http.client, but asking for the cluster: whatever name or address leads there, it must not matter."""
        super().putrequest(method, url, skip_host=True, skip_accept_encoding=skip_accept_encoding)
        if not skip_host:
            self.putheader("Host", self._name)

    def connect(self) -> None:
        """As http.client, then the handshake. ssl.SSLCertVerificationError if it is somebody else."""
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)


def connection_to(place: DataPlace, timeout_s: float) -> http.client.HTTPConnection:
    """A connection, made at the first request.

    Raises:
        TrustError: a cluster with authorities has a data port without TLS.
        RemoteProtocolError: the coordinator's URL of its data port is none.
    """
    try:
        return _connection_to(place, timeout_s)
    except (ValueError, http.client.InvalidURL) as error:
        raise RemoteProtocolError(
            f"the coordinator says that its data port is at {place.url!r:.200}: {error}"
        ) from error


def _connection_to(place: DataPlace, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(place.url)
    host = parts.hostname or ""
    if not place.authorities:
        return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    if parts.scheme != "https":
        raise TrustError(f"the data port {place.url} has no TLS, but its cluster has; nothing was sent to it")
    from districomp.tls import client_context, server_name

    return _VerifiedConnection(
        host, parts.port, timeout_s, client_context(place.authorities), server_name(place.cluster)
    )
