"""Blobs: payloads above 64 KiB as files named by their SHA-256, below one folder.

Owns the layout (`ROOT/ab/abcdef...`, unfinished ones in `ROOT/tmp`), durability (a blob has its name only once
it is on disk whole) and the low-water mark of disk space. Must not know what a blob is used for, nor who may
read it, nor decide when one is no longer needed. Folders are their group's as far as the umask allows: under systemd the web
server is another user, with the group of the coordinator.
"""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from districomp.errors import DistricompError
from districomp.model import Blob

LOW_WATER_BYTES: Final = 64 * 1024 * 1024
"""No blob is taken that would leave less free space than this: the journal needs it."""
CHUNK_BYTES: Final = 1024 * 1024
_SPACE_CHECK_BYTES: Final = 16 * 1024 * 1024
_HEX_DIGITS: Final = frozenset("0123456789abcdef")


class BlobError(DistricompError):
    """A blob could not be read or written."""


class DigestMismatchError(BlobError):
    """The bytes are not those that the name promises."""


class NoSpaceError(BlobError):
    """Too little disk space is left to take the blob."""


def is_sha256_hex(text: str) -> bool:
    """Whether a text is a SHA-256 as this project writes it: 64 lower-case hex digits."""
    return len(text) == 64 and _HEX_DIGITS.issuperset(text)


class BlobWriter:
    """One blob on its way in: `write` as the bytes come, then exactly one of `commit` and `abort`.

    Blocking; an asyncio caller runs it in a thread. As a context manager it aborts what was not committed.
    """

    def __init__(self, store: "BlobStore") -> None:
        store.check_space(0)
        self._store = store
        self._digest = hashlib.sha256()
        self._size = 0
        self._next_space_check = _SPACE_CHECK_BYTES
        self._path = store.unfinished / secrets.token_hex(16)
        self._file = -1
        try:
            store.unfinished.mkdir(mode=0o770, parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _storage_error(error, self._path) from error

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._size

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            NoSpaceError: the disk is full or below the low-water mark; the writer has been aborted.
        """
        assert self._file >= 0, "write after commit or abort"
        try:
            if self._size + len(chunk) >= self._next_space_check:
                self._store.check_space(len(chunk))
                self._next_space_check = self._size + _SPACE_CHECK_BYTES
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            self.abort()
            raise _storage_error(error, self._path) from error
        except NoSpaceError:
            self.abort()
            raise
        self._digest.update(chunk)
        self._size += len(chunk)

    def commit(self, expected_hex: str | None = None) -> Blob:
        """Make the blob durable and give it its name; a blob that is there already stays as it is.

        Raises:
            DigestMismatchError: the bytes have another digest than `expected_hex`; nothing is kept.
            NoSpaceError: the disk is full; nothing is kept.
        """
        assert self._file >= 0, "commit after commit or abort"
        try:
            name = self._digest.hexdigest()
            if expected_hex is not None and name != expected_hex:
                raise DigestMismatchError(
                    f"the {self._size} bytes received have SHA-256 {name}, not {expected_hex}; send them again whole"
                )
            if not self._store.has(name):
                os.fsync(self._file)
                self._store.adopt(self._path, name)
            return Blob(self._digest.digest(), self._size)
        except OSError as error:
            raise _storage_error(error, self._path) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget what was written; does nothing after `commit`."""
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.abort()


class BlobStore:
    """All blobs below one folder, which is made at the first write. Several processes may share it."""

    def __init__(self, root: Path, *, low_water_bytes: int = LOW_WATER_BYTES) -> None:
        self.root = root
        self.unfinished = root / "tmp"
        self.low_water_bytes = low_water_bytes

    def path(self, sha256_hex: str) -> Path:
        """Where a blob is, or would be.

        Raises:
            BlobError: the name is not a SHA-256 in hex.
        """
        if not is_sha256_hex(sha256_hex):
            raise BlobError(f"{sha256_hex[:80]!r} is not a blob's name; that is a SHA-256: 64 lower-case hex digits")
        return self.root / sha256_hex[:2] / sha256_hex

    def has(self, sha256_hex: str) -> bool:
        """Whether the blob is here, whole."""
        return self.size(sha256_hex) is not None

    def size(self, sha256_hex: str) -> int | None:
        """A blob's bytes, None if it is not here."""
        try:
            return self.path(sha256_hex).stat().st_size
        except FileNotFoundError:
            return None

    def writer(self) -> BlobWriter:
        """Begin a blob of unknown size.

        Raises:
            NoSpaceError: the free space is below the low-water mark.
        """
        return BlobWriter(self)

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes as a blob; nothing is written if it is here already."""
        digest = hashlib.sha256(data)
        if self.has(digest.hexdigest()):
            return Blob(digest.digest(), len(data))
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def put_file(self, path: Path) -> Blob:
        """Store a file's content as a blob, read in chunks; OSError if it cannot be read."""
        with path.open("rb") as source, self.writer() as writer:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit()

    def read_bytes(self, sha256_hex: str) -> bytes:
        """A whole blob in memory: for small ones such as a bundle's manifest.

        Raises:
            BlobError: it is not here.
        """
        try:
            return self.path(sha256_hex).read_bytes()
        except FileNotFoundError:
            raise BlobError(f"blob {sha256_hex} is not in {self.root}; upload it first") from None

    def check_space(self, wanted_bytes: int) -> None:
        """Refuse what would leave less free space than the low-water mark.

        Raises:
            NoSpaceError: it would.
        """
        free_bytes = _free_bytes(self.root)
        if free_bytes - wanted_bytes < self.low_water_bytes:
            raise NoSpaceError(
                f"{free_bytes} bytes are free for blobs in {self.root}, and {self.low_water_bytes} are kept back"
                " for the journal; free some disk space"
            )

    def adopt(self, written: Path, name: str) -> None:
        """Give a fully written and synced file its name, durably. For BlobWriter; `name` is its SHA-256 in hex."""
        target = self.path(name)
        try:
            target.parent.mkdir(mode=0o770)
            _sync_folder(self.root)
        except FileExistsError:
            pass
        written.rename(target)
        _sync_folder(target.parent)

    def sweep_unfinished(self, older_than_s: float) -> int:
        """Remove what processes that were killed left half written; returns how many files."""
        before = time.time() - older_than_s
        return sum(1 for path in _unfinished(self.unfinished) if _remove_if_older(path, before))


def _unfinished(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return


def _remove_if_older(path: Path, before: float) -> bool:
    try:
        if path.stat().st_mtime >= before:
            return False
        path.unlink()
    except FileNotFoundError:  # its writer ended meanwhile
        return False
    return True


def _free_bytes(folder: Path) -> int:
    while True:
        try:
            space = os.statvfs(folder)
        except FileNotFoundError:  # made at the first write; its nearest parent is on the same disk
            folder = folder.parent
            continue
        return space.f_bavail * space.f_frsize


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _storage_error(error: OSError, path: Path) -> BlobError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"the disk of {path.parent} is full: {error.strerror}; free some space")
    return BlobError(f"cannot write {path}: {error.strerror or error}; check the folder's owner and rights")
