"""Payloads above 64 KiB between a client and the data port, over one keep-alive HTTP connection.

Owns `HEAD` and `PUT` of DATA_URL/blobs/SHA256HEX, `GET` of results, and their repetition. Must not know jobs or messages.
"""

import hashlib
import http.client
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Final

from districomp.client_dataport import connection_to
from districomp.client_items import CHUNK_BYTES, digest_file
from districomp.client_pool import DataPlace
from districomp.errors import DistricompError, TrustError, UsageError
from districomp.model import Blob

TIMEOUT_S: Final = 30.0
PATIENCE_S: Final = 30.0
"""How long an unreachable data port is tried again: it starts a little after the coordinator does."""
ERROR_TEXT_MAX: Final = 500


Headers = dict[str, str]


class DataPortError(DistricompError):
    """The data port does not answer, or refuses a payload."""


class UnauthorisedError(Exception):
    """Our grant is not, or no longer, good: another one may be."""


class Blobs:
    """Uploads and downloads. `place` gives the data port (anew after a failure), `grant` the right to a verb and path."""

    def __init__(self, place: Callable[[bool], DataPlace], grant: Callable[[str, str], str]) -> None:
        self._place = place
        self._grant = grant
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._connected_to: tuple[int, DataPlace] | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def put(self, file: IO[bytes]) -> Blob:
        """Upload an open file from where it stands, unless the coordinator has it already."""
        digest, size = digest_file(file)
        blob = Blob(digest, size)
        path = f"/blobs/{digest.hex()}"
        start = file.tell()

        def upload(connection: http.client.HTTPConnection, authorisation: Headers) -> None:
            if self._has(connection, path, authorisation):
                return
            file.seek(start)
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream", **authorisation}
            connection.request("PUT", path, body=_exactly(file, size), headers=headers)
            response = connection.getresponse()
            text = response.read(ERROR_TEXT_MAX).decode("utf-8", "replace").strip()
            response.read()
            if response.status >= 300:
                raise _refusal(f"the upload of {size} bytes", response.status, text)

        with self._lock:
            self._repeat(upload, "PUT", path)
        return blob

    def get(self, path: str, blob: Blob, file: IO[bytes]) -> None:
        """Download a payload from a path into an open file, checked against its SHA-256 and size."""
        start = file.tell()

        def download(connection: http.client.HTTPConnection, authorisation: Headers) -> None:
            file.seek(start)
            file.truncate()
            connection.request("GET", path, headers=authorisation)
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(ERROR_TEXT_MAX).decode("utf-8", "replace").strip()
                response.read()
                raise _refusal(path.removeprefix("/"), response.status, text)
            digest = hashlib.sha256()
            size = 0
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                if size > blob.size:
                    break
                _write(file, chunk)
            if (digest.digest(), size) != (blob.sha256, blob.size):
                raise http.client.IncompleteRead(b"", blob.size)

        with self._lock:
            self._repeat(download, "GET", path)

    def _has(self, connection: http.client.HTTPConnection, path: str, authorisation: Headers) -> bool:
        connection.request("HEAD", path, headers=authorisation)
        response = connection.getresponse()
        response.read()
        return response.status == 200

    def _repeat(self, act: Callable[[http.client.HTTPConnection, Headers], None], verb: str, path: str) -> None:
        """Run `act` until it works, on a new connection each time; DataPortError after PATIENCE_S.

        A grant that is not taken is asked for anew once, and so is whom to believe when the certificate is another's.
        """
        deadline = time.monotonic() + PATIENCE_S
        pause_s = 0.05
        fault = "it has none, because its web process does not run (yet)"
        ask_again = False
        doubts = 0
        while True:
            place = self._place(ask_again)
            if place.url:
                grant = self._grant(verb, path)
                try:
                    act(self._connected(place), {"Authorization": f"Bearer {grant}"} if grant else {})
                except UnauthorisedError as error:
                    doubts += 1
                    fault = str(error)
                    if doubts > 1:
                        self.close()
                        raise DataPortError(f"the data port refuses {error}") from None
                except ssl.SSLCertVerificationError as error:
                    doubts += 1
                    fault = f"{place.url} cannot prove that it belongs to our cluster ({error.verify_message})"
                    if doubts > 1:
                        self.close()
                        raise TrustError(f"{fault}; nothing was sent to it") from error
                except (OSError, http.client.HTTPException) as error:
                    fault = f"{place.url}: {error or type(error).__name__}"
                except BaseException:
                    self.close()
                    raise
                else:
                    return
            self.close()
            if time.monotonic() >= deadline:
                raise DataPortError(
                    "the coordinator's data port, which carries payloads above 64 KiB, does not work: "
                    f"{fault}; see its log, and whether dcoord-web runs"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
            ask_again = True

    def _connected(self, place: DataPlace) -> http.client.HTTPConnection:
        there = os.getpid(), place  # a fork has a connection of its own
        if self._connection is None or self._connected_to != there:
            self.close()
            self._connection = connection_to(place, TIMEOUT_S)
            self._connected_to = there
        return self._connection


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    """What was hashed and announced, not a byte more or less; UsageError if the file has shrunk since."""
    while size:
        chunk = file.read(min(size, CHUNK_BYTES))
        if not chunk:
            name = getattr(file, "name", "the input")
            raise UsageError(f"{name} became shorter while it was read; submit it again once nothing writes to it")
        size -= len(chunk)
        yield chunk


def _write(file: IO[bytes], chunk: bytes) -> None:
    """Write; a full disk of ours is no fault of the data port and is not tried again."""
    try:
        file.write(chunk)
    except OSError as error:
        name = getattr(file, "name", "the output")
        raise UsageError(f"{name} cannot be written: {error}; make room or choose another folder") from error


def _refusal(what: str, status: int, text: str) -> Exception:
    """A refusal: one that will not change by asking again is final."""
    message = f"{what}: {status} {text or http.client.responses.get(status, '')}"
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return UnauthorisedError(message)
    if status >= 500 and status != http.client.INSUFFICIENT_STORAGE:
        return http.client.HTTPException(message)
    return DataPortError(f"the data port refuses {message}")
