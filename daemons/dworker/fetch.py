"""HTTP to the coordinator's data port: verified downloads, uploads. Blocking, for threads; a connection a thread, kept alive."""

import contextlib
import hashlib
import http.client
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from districomp.errors import DistricompError

CHUNK_BYTES: Final = 1024 * 1024
TIMEOUT_S: Final = 30.0
_TEXT_MAX: Final = 500

T = TypeVar("T")


class FetchError(DistricompError):
    """A payload could not be had or brought. `final`: trying again is of no use."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class _Ask(NamedTuple, Generic[T]):
    """A request; `receive` takes its successful answer."""

    verb: str
    path: str
    receive: Callable[[http.client.HTTPResponse], T]
    body: IO[bytes] | None = None
    size: int = 0


class DataPort:
    """The data port at `url`, which may change at any time: each request uses the newest."""

    def __init__(self) -> None:
        self.url = ""
        self._threads = threading.local()

    def download(self, path: str, target: Path, sha256: str, size: int) -> None:
        """GET into a new file, checked against its digest and size. FetchError; the file is gone then."""
        try:
            with target.open("xb", buffering=0) as file:
                self._request(_Ask("GET", path, lambda response: _receive(response, file, sha256, size)))
        except OSError as error:
            target.unlink(missing_ok=True)
            raise FetchError(f"{target} cannot be written: {error.strerror}") from error
        except FetchError:
            target.unlink(missing_ok=True)
            raise

    def read(self, path: str, sha256: str, bytes_max: int) -> bytes:
        """GET a small payload into memory, checked."""

        def receive(response: http.client.HTTPResponse) -> bytes:
            body = response.read(bytes_max + 1)
            if len(body) > bytes_max or hashlib.sha256(body).hexdigest() != sha256:
                raise FetchError("the bytes received are not those of the name", final=len(body) > bytes_max)
            return body

        return self._request(_Ask("GET", path, receive))

    def upload(self, path: str, source: Path, size: int) -> None:
        """PUT a file. FetchError."""
        with source.open("rb") as file:
            self._request(_Ask("PUT", path, http.client.HTTPResponse.read, file, size))

    def _request(self, ask: "_Ask[T]") -> T:
        """One request; a connection that was idle may have been closed meanwhile, so that is tried once more."""
        url = self.url
        if not url:
            raise FetchError("no coordinator has said yet where its data port is")
        while True:
            last = self._is_fresh(url)
            try:
                return self._try(url, ask)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if last or isinstance(error, TimeoutError):
                    raise FetchError(f"{url} does not answer: {error or type(error).__name__}") from error

    def _try(self, url: str, ask: "_Ask[T]") -> T:
        connection = self._connection(url)
        connection.putrequest(ask.verb, ask.path, skip_accept_encoding=True)
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
                raise FetchError(
                    f"{url}{ask.path} was answered {response.status} {text or response.reason}", final=final
                )
            return ask.receive(response)
        finally:
            if not response.isclosed():
                self._drop()

    def _is_fresh(self, url: str) -> bool:
        return getattr(self._threads, "url", None) != url or self._threads.connection.sock is None

    def _connection(self, url: str) -> http.client.HTTPConnection:
        if getattr(self._threads, "url", None) != url:
            self._drop()
            parts = urlsplit(url)
            self._threads.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
            self._threads.url = url
        connection: http.client.HTTPConnection = self._threads.connection
        return connection

    def _drop(self) -> None:
        connection = getattr(self._threads, "connection", None)
        if connection is not None:
            connection.close()


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
