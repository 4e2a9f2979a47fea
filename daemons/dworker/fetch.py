"""HTTP to the coordinator's data port: verified downloads, uploads. Blocking, for threads; a connection a thread, kept alive.

The port must have the certificate of the cluster's coordinator, and each request shows a right to what it asks for; but
for `insecure`, where there is neither.
"""

import contextlib
import hashlib
import http.client
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from districomp.dial import words
from districomp.errors import DistricompError
from dworker.grants import Place

if TYPE_CHECKING:
    import ssl

CHUNK_BYTES: Final = 1024 * 1024
TIMEOUT_S: Final = 30.0
_TEXT_MAX: Final = 500

T = TypeVar("T")


Right = Callable[[bool], str]
"""Gives the grant for a request; True: not the one from before, it was refused. FetchError if there is none."""


class FetchError(DistricompError):
    """A payload could not be had or brought. `final`: trying again is of no use."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class RefusedError(FetchError):
    """The data port does not accept the grant."""


class _Ask(NamedTuple, Generic[T]):
    """A request; `receive` takes its successful answer."""

    verb: str
    path: str
    right: Right
    receive: Callable[[http.client.HTTPResponse], T]
    body: IO[bytes] | None = None
    size: int = 0


class DataPort:
    """The data port at `place`, which may change at any time: each request uses the newest."""

    def __init__(self) -> None:
        self.place = Place("")
        self._threads = threading.local()

    def download(self, path: str, right: Right, target: Path, sha256: str, size: int) -> None:
        """GET into a new file, checked against its digest and size. FetchError; the file is gone then."""
        try:
            with target.open("xb", buffering=0) as file:
                self._request(_Ask("GET", path, right, lambda response: _receive(response, file, sha256, size)))
        except OSError as error:
            target.unlink(missing_ok=True)
            raise FetchError(f"{target} cannot be written: {error.strerror}") from error
        except FetchError:
            target.unlink(missing_ok=True)
            raise

    def read(self, path: str, right: Right, sha256: str, bytes_max: int) -> bytes:
        """GET a small payload into memory, checked."""

        def receive(response: http.client.HTTPResponse) -> bytes:
            body = response.read(bytes_max + 1)
            if len(body) > bytes_max or hashlib.sha256(body).hexdigest() != sha256:
                raise FetchError("the bytes received are not those of the name", final=len(body) > bytes_max)
            return body

        return self._request(_Ask("GET", path, right, receive))

    def upload(self, path: str, right: Right, source: Path, size: int) -> None:
        """PUT a file. FetchError."""
        with source.open("rb") as file:
            self._request(_Ask("PUT", path, right, http.client.HTTPResponse.read, file, size))

    def _request(self, ask: "_Ask[T]") -> T:
        """One request, with another right if the first is not accepted (any more)."""
        try:
            return self._deliver(ask, fresh=False)
        except RefusedError:
            if not self.place.name:
                raise
            return self._deliver(ask, fresh=True)

    def _deliver(self, ask: "_Ask[T]", *, fresh: bool) -> T:
        """A connection that was idle may have been closed meanwhile, so that is tried once more."""
        place = self.place
        if not place.url:
            raise FetchError("no coordinator has said yet where its data port is")
        grant = ask.right(fresh) if place.name else ""
        while True:
            last = self._is_fresh(place)
            try:
                return self._try(place, ask, grant)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if last or isinstance(error, TimeoutError):
                    why = words(error) if isinstance(error, OSError) else str(error) or type(error).__name__
                    raise FetchError(f"no answer from {place.url}: {why}") from error

    def _try(self, place: Place, ask: "_Ask[T]", grant: str) -> T:
        connection = self._connection(place)
        # By its name of the cluster: that is the one it knows however it is reached.
        connection.putrequest(ask.verb, ask.path, skip_host=bool(place.name), skip_accept_encoding=True)
        if place.name:
            connection.putheader("Host", place.name)
            connection.putheader("Authorization", f"Bearer {grant}")
        if ask.body is not None:
            connection.putheader("Content-Length", str(ask.size))
            connection.putheader("Content-Type", "application/octet-stream")
        connection.endheaders()
        if ask.body is not None:
            assert connection.sock is not None
            # A server that has seen enough answers and closes; its answer says why, if it still comes.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sock.sendfile(ask.body, 0, ask.size)
        response = connection.getresponse()
        try:
            if not 200 <= response.status < 300:
                text = response.read(_TEXT_MAX).decode("utf-8", "replace").strip()
                final = response.status in (400, 401, 403, 404, 410, 413)
                kind = RefusedError if response.status in (401, 403) else FetchError
                raise kind(
                    f"{place.url}{ask.path} was answered {response.status} {text or response.reason}", final=final
                )
            return ask.receive(response)
        finally:
            if not response.isclosed():
                self._drop()

    def _is_fresh(self, place: Place) -> bool:
        return getattr(self._threads, "place", None) != place or self._threads.connection.sock is None

    def _connection(self, place: Place) -> http.client.HTTPConnection:
        if getattr(self._threads, "place", None) != place:
            self._drop()
            self._threads.connection = _connection(place)
            self._threads.place = place
        connection: http.client.HTTPConnection = self._threads.connection
        return connection

    def _drop(self) -> None:
        connection = getattr(self._threads, "connection", None)
        if connection is not None:
            connection.close()


class _Proven(http.client.HTTPConnection):
    """A connection to one who proves to have a name that is not its address."""

    def __init__(self, host: str, port: int | None, context: "ssl.SSLContext", name: str) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._context = context
        self._name = name

    def connect(self) -> None:
        """http.client: connect, and have the other side prove who it is before anything is said."""
        super().connect()
        try:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)
        except BaseException:
            self.close()
            raise


def _connection(place: Place) -> http.client.HTTPConnection:
    parts = urlsplit(place.url)
    host = parts.hostname or ""
    if not place.name:
        return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    from districomp.tls import client_context

    return _Proven(host, parts.port or 443, client_context(place.authorities), place.name)


def _receive(response: http.client.HTTPResponse, file: IO[bytes], sha256: str, size: int) -> None:
    digest, left = hashlib.sha256(), size
    buffer = bytearray(min(CHUNK_BYTES, max(size, 1)))
    view = memoryview(buffer)
    file.seek(0)
    file.truncate()
    while count := response.readinto(buffer):
        left -= count
        if left < 0:
            break
        digest.update(view[:count])
        file.write(view[:count])
    if left:
        raise FetchError(f"{size} bytes were expected, {size - left} or more came")
    if digest.hexdigest() != sha256:
        raise FetchError("the bytes received are not those of the name")
