"""A cpio archive as the kernel takes it for an initial RAM disk ("newc", Documentation/driver-api/early-userspace).

The same entries give the same bytes; everything belongs to root. Archives may be put one after another, each as long
as a multiple of four. Standard library only.
"""

import stat
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

_MAGIC: Final = "070701"
_END: Final = "TRAILER!!!"


class Entry(NamedTuple):
    """A file's content and mode, type included; a folder has no content, a symbolic link its target as content."""

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(mode: int = 0o755) -> Entry:
    """A folder."""
    return Entry(stat.S_IFDIR | mode)


def file(content: bytes, mode: int = 0o644) -> Entry:
    """A file."""
    return Entry(stat.S_IFREG | mode, content)


def link(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def device(major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def write(entries: Mapping[str, Entry], target: BinaryIO, time: int) -> None:
    """Write entries by their paths, and the folders that they need. `time`: Unix seconds that all are dated by."""
    complete = {parent: folder() for path in entries for parent in _parents(path)}
    complete.update(entries)
    # A folder sorts before what is in it, and must come before it.
    for number, path in enumerate(sorted(complete), 1):
        target.write(_header(path, complete[path], number, time))
        target.write(_padded(complete[path].content))
    target.write(_header(_END, Entry(0), 0, 0))


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:i]) for i in range(1, len(parts)))


def _header(path: str, entry: Entry, number: int, time: int) -> bytes:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    name = path.encode() + b"\0"
    fields = [number, entry.mode, 0, 0, links, time, len(entry.content), 0, 0, *entry.device, len(name), 0]
    return _padded(_MAGIC.encode() + b"".join(b"%08X" % field for field in fields) + name)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
