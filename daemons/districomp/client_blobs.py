"""Payloads above 64 KiB between a client and the data port, over one keep-alive HTTP connection.

Owns `HEAD`, `PUT` and `GET` of DATA_URL/blobs/SHA256HEX and their repetition. Must not know jobs or messages.
"""

import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Final
from urllib.parse import urlsplit

from districomp.client_items import CHUNK_BYTES, digest_file
from districomp.errors import DistricompError, UsageError
from districomp.model import Blob

TIMEOUT_S: Final = 30.0
PATIENCE_S: Final = 30.0
"""How long an unreachable data port is tried again: it starts a little after the coordinator does."""
ERROR_TEXT_MAX: Final = 500


class DataPortError(DistricompError):
    """The data port does not answer, or refuses a payload."""


class Blobs:
    """Uploads and downloads. `url` gives the data port's address, asked for anew after each failure."""

    def __init__(self, url: Callable[[bool], str]) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._base = ""

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def put(self, file: IO[bytes]) -> Blob:
        """Upload an open file from where it stands, unless the coordinator has it already."""
        digest, size = digest_file(file)
        blob = Blob(digest, size)
        start = file.tell()

        def upload(connection: http.client.HTTPConnection, path: str) -> None:
            if self._has(connection, path):
                return
            file.seek(start)
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            connection.request("PUT", path, body=_exactly(file, size), headers=headers)
            response = connection.getresponse()
            text = response.read(ERROR_TEXT_MAX).decode("utf-8", "replace").strip()
            response.read()
            if response.status >= 300:
                raise _refusal(f"the upload of {size} bytes", response.status, text)

        with self._lock:
            self._repeat(upload, blob)
        return blob

    def get(self, blob: Blob, file: IO[bytes]) -> None:
        """Download a payload into an open file, checked against its SHA-256 and size."""
        start = file.tell()

        def download(connection: http.client.HTTPConnection, path: str) -> None:
            file.seek(start)
            file.truncate()
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(ERROR_TEXT_MAX).decode("utf-8", "replace").strip()
                response.read()
                raise _refusal(f"the payload {blob.sha256.hex()}", response.status, text)
            digest = hashlib.sha256()
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                _write(file, chunk)
            if digest.digest() != blob.sha256:
                raise http.client.IncompleteRead(b"", blob.size)

        with self._lock:
            self._repeat(download, blob)

    def _has(self, connection: http.client.HTTPConnection, path: str) -> bool:
        connection.request("HEAD", path)
        response = connection.getresponse()
        response.read()
        return response.status == 200

    def _repeat(self, act: Callable[[http.client.HTTPConnection, str], None], blob: Blob) -> None:
        """Run `act` until it works, on a new connection each time; DataPortError after PATIENCE_S."""
        path = f"/blobs/{blob.sha256.hex()}"
        deadline = time.monotonic() + PATIENCE_S
        pause_s = 0.05
        fault = "it has none, because its web process does not run (yet)"
        ask_again = False
        while True:
            base = self._url(ask_again)
            if base:
                try:
                    connection, prefix = self._connected(base)
                    act(connection, prefix + path)
                except (OSError, http.client.HTTPException) as error:
                    fault = f"{base}: {error or type(error).__name__}"
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

    def _connected(self, base: str) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(base)
        if self._connection is None or self._base != base:
            self.close()
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
            self._base = base
        return self._connection, parts.path.rstrip("/")


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
    if status >= 500 and status != http.client.INSUFFICIENT_STORAGE:
        return http.client.HTTPException(message)
    return DataPortError(f"the data port refuses {message}")
