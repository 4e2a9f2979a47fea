"""Bundles: the folder of programs beside a definition, walked without a trap. Reads, writes nothing.

Owns what may be in the folder, and the order to walk it. Opens everything below a directory descriptor
without following links, so that no name inside can lead outside. Must not know what a definition is, nor
where the files go: who walks says what is done with each.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from districomp.errors import DistricompError
from districomp.taskdef import BundleFile

BUNDLE_FILES_MAX: Final = 10_000
BUNDLE_BYTES_MAX: Final = 1024**3
DEPTH_MAX: Final = 32
FAULTS_MAX: Final = 10
CHUNK_BYTES: Final = 1024 * 1024
# A file that is written to twice within the clock's tick looks unchanged: what is younger is not cached.
SETTLED_S: Final = 0.1
_IGNORED: Final = frozenset(("__pycache__",))
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the opening of a FIFO waits for its writer.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Signature = tuple[int, ...]
Take = Callable[[int, int], str]
"""An open file and its size to the SHA-256 (hex) of its content. ChangedError if it is another size by then."""


class BundleError(DistricompError):
    """A bundle cannot be taken; the message says which of its files, and why."""


class ChangedError(Exception):
    """A file grew or shrank between its stat and its end."""


def walk_bundle(
    parent: int, folder: str, take: Take, known: Mapping[str, tuple[Signature, BundleFile]] | None = None
) -> "Walk":
    """Everything in `folder` below the open directory `parent`. `known`: files taken before, which are not if unchanged.

    Raises:
        BundleError: the folder itself is none. What is wrong inside is in the walk's `faults`.
    """
    walk = Walk(take, known or {})
    handle = _open_below(parent, folder)
    try:
        walk.folder(handle, "", 1)
    finally:
        os.close(handle)
    walk.files.sort(key=lambda file: file.path)
    if not walk.faults and not walk.files:
        walk.faults.append("the folder is empty")
    return walk


class Walk:
    """One pass over a folder: its files, those worth remembering, and the faults, which `text` tells."""

    def __init__(self, take: Take, known: Mapping[str, tuple[Signature, BundleFile]]) -> None:
        self._take = take
        self._known = known
        self._bytes = 0
        self.files: list[BundleFile] = []
        self.cache: dict[str, tuple[Signature, BundleFile]] = {}
        self.faults: list[str] = []

    @property
    def text(self) -> str:
        """The faults, as many as a person reads; '' if there are none."""
        return "; ".join(self.faults[:FAULTS_MAX])

    def folder(self, handle: int, prefix: str, depth: int) -> None:
        """Take everything below an open directory."""
        if depth > DEPTH_MAX:
            self.faults.append(f"{prefix} is nested deeper than {DEPTH_MAX} folders")
            return
        with os.scandir(handle) as entries:
            for entry in entries:
                if entry.name in _IGNORED:
                    continue
                path = prefix + entry.name
                try:
                    self._entry(handle, entry, path, depth)
                except OSError as error:
                    self.faults.append(f"{path} cannot be read: {error.strerror}")
                except ChangedError:
                    self.faults.append(f"{path} is being changed; it is read again at once")
                if self._full():
                    return

    def _full(self) -> bool:
        if len(self.files) > BUNDLE_FILES_MAX:
            self.faults.insert(0, f"has more than {BUNDLE_FILES_MAX:,} files")
        elif self._bytes > BUNDLE_BYTES_MAX:
            self.faults.insert(0, "has more than 1 GiB")
        # Faults are bounded too, or a folder of links would be walked and reported whole.
        return len(self.files) > BUNDLE_FILES_MAX or self._bytes > BUNDLE_BYTES_MAX or len(self.faults) > FAULTS_MAX

    def _entry(self, handle: int, entry: os.DirEntry[str], path: str, depth: int) -> None:
        info = entry.stat(follow_symlinks=False)
        try:
            path.encode()
        except UnicodeEncodeError:
            self.faults.append(f"{path.encode(errors='replace').decode()} has a name that is not UTF-8")
            return
        if stat.S_ISDIR(info.st_mode):
            child = os.open(entry.name, _FOLDER_FLAGS, dir_fd=handle)
            try:
                self.folder(child, path + "/", depth + 1)
            finally:
                os.close(child)
        elif stat.S_ISREG(info.st_mode):
            self._file(handle, entry.name, path, info)
        else:
            self.faults.append(f"{path} is {_kind(info.st_mode)}; a bundle holds only files and folders")

    def _file(self, handle: int, name: str, path: str, info: os.stat_result) -> None:
        self._bytes += info.st_size
        if self._bytes > BUNDLE_BYTES_MAX:
            return
        signature = signature_of(info)
        known = self._known.get(path)
        if known is None or known[0] != signature:
            file = os.open(name, _FILE_FLAGS, dir_fd=handle)
            try:
                sha256 = self._take(file, info.st_size)
            finally:
                os.close(file)
            # Read-only wherever it is laid out; only whether it can be run matters.
            known = (signature, BundleFile(path, 0o555 if info.st_mode & 0o100 else 0o444, info.st_size, sha256))
        self.files.append(known[1])
        if is_settled(info):
            self.cache[path] = known


def signature_of(info: os.stat_result) -> Signature:
    """What changes when a file's content, mode or identity does."""
    return (info.st_dev, info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def is_settled(info: os.stat_result) -> bool:
    """Whether a later change is sure to change the signature."""
    return abs(time.time() - info.st_ctime) > SETTLED_S


def _open_below(parent: int, folder: str) -> int:
    """Open a relative folder one component at a time, because O_NOFOLLOW only looks at the last."""
    handle = os.dup(parent)
    for name in folder.split("/"):
        try:
            child = os.open(name, _FOLDER_FLAGS, dir_fd=handle)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise BundleError(f"{folder} is not a folder (a link is not followed)") from None
            raise BundleError(f"the folder {folder} cannot be opened: {error.strerror}") from None
        finally:
            os.close(handle)
        handle = child
    return handle


def chunks(file: int, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes and the end, so that neither a growing file nor a wrong size gets into a manifest."""
    left = size
    while chunk := os.read(file, min(CHUNK_BYTES, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise ChangedError
        yield chunk
    if left:
        raise ChangedError


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    return "a device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "a pipe or socket"
