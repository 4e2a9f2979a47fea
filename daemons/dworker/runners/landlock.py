"""Landlock: a wall around the folders with keys, for everything that is started behind it.

Owns which folders are closed to tasks, and the rulesets that say so to the kernel (Linux 5.13 and later).
Must not know what is in them, nor who is restricted: `spawnd.py` puts the ruleset on a thread of its own.

Landlock can allow and nothing else, and what is allowed of a folder holds for all below it. So the
folders on the way to a closed one are allowed nothing, and each of their other entries is allowed
everything. An entry made later is not among these: `renewed` makes another ruleset when one of
those folders, or what is mounted, has changed. Listing folders, executing and looking at what is there
(`stat`) are never restricted.
"""

import ctypes
import logging
import os
import platform
import re
import select
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_MACHINES: Final = re.compile(r"x86_64|i[3-6]86|aarch64|arm.*|riscv\d+|ppc.*|s390x?|loongarch\d+")
"""Where the numbers of the calls above are these."""
_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_ATTRIBUTES: Final = struct.Struct("=Q")
_BENEATH: Final = struct.Struct("=Qi")

_WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
_CHANGE_ENTRIES: Final = sum(1 << bit for bit in range(4, 13))
"""Remove and make entries of a folder, of whatever kind."""
_REFER: Final = 1 << 13
"""Rename and link between folders, since ABI 2; without it the kernel refuses that in every ruleset."""
_TRUNCATE: Final = 1 << 14
"""Since ABI 3."""

_CLOCK_REALTIME_COARSE: Final = 5
"""The clock that file systems take their times from: two changes within one of its ticks leave the same time."""


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    """OSError if it fails."""
    result: int = _libc.syscall(
        ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.syscall.restype = ctypes.c_long


def abi() -> int:
    """The version of Landlock that this kernel has; 0 without."""
    if sys.platform != "linux" or not _MACHINES.fullmatch(platform.machine()):
        return 0
    if hasattr(sys, "getandroidapilevel"):
        return 0  # Android ends a program for a system call that it does not know
    try:
        return _syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


class _Seen(NamedTuple):
    """A folder as it was when it was listed. `names` is None if its times alone tell of any change."""

    device: int
    inode: int
    changed_ns: int
    names: list[str] | None


class Guard:
    """Makes rulesets under which nothing `hidden` can be read or written, and nothing `readable` be written.

    The paths need not exist. To be made only where `abi()` is not 0.
    """

    def __init__(self, hidden: Sequence[Path], readable: Sequence[Path] = ()) -> None:
        version = abi()
        self._hidden, self._readable = hidden, readable
        self._file_rights = READ_FILE | _WRITE_FILE | (_TRUNCATE if version >= 3 else 0)
        self._rights = self._file_rights | _CHANGE_ENTRIES | (_REFER if version >= 2 else 0)
        self._seen: dict[str, _Seen | None] = {}
        self._unsettled: list[str] = []
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._mounts, select.POLLPRI)

    def close(self) -> None:
        """No more rulesets."""
        os.close(self._mounts)

    def forget(self) -> None:
        """Whoever had the last ruleset is gone: `renewed` makes another."""
        self._seen.clear()

    def renewed(self) -> int | None:
        """A descriptor of a new ruleset, the caller's to close, if the last one is out of date. OSError."""
        now_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        # Asked in any case: the answer is forgotten once given.
        if self._poll.poll(0) or not self._seen or not all(map(_is_same, self._seen, self._seen.values())):
            return self._make()
        for folder in self._unsettled:
            self._settle(folder, now_ns)
        return None

    def _settle(self, folder: str, now_ns: int) -> None:
        """If a folder's times will tell of any change from now on, do not list it again; it was the same after `now_ns`."""
        seen = self._seen[folder]
        assert seen is not None
        if _is_settled(seen.changed_ns, now_ns):
            self._seen[folder] = seen._replace(names=None)
            self._unsettled = [other for other in self._unsettled if other != folder]

    def _make(self) -> int:
        mounts = os.pread(self._mounts, 1 << 24, 0).decode("utf-8", "surrogateescape")
        hidden = {name for path in self._hidden for name in names_of(os.path.realpath(path), mounts)}
        readable = {name for path in self._readable for name in names_of(os.path.realpath(path), mounts)}
        way = sorted({str(parent) for name in hidden | readable for parent in Path(name).parents})
        ruleset = _syscall(_CREATE_RULESET, _ATTRIBUTES.pack(self._rights), _ATTRIBUTES.size, 0)
        try:
            self._seen = {folder: self._allow_entries(ruleset, folder, hidden.union(way), readable) for folder in way}
            self._unsettled = [folder for folder, seen in self._seen.items() if seen is not None and seen.names]
        except BaseException:
            self._seen.clear()
            os.close(ruleset)
            raise
        return ruleset

    def _allow_entries(self, ruleset: int, folder: str, closed: set[str], readable: set[str]) -> _Seen | None:
        """Allow what is in a folder on the way, but for what is closed; how the folder was just before."""
        names: list[str] = []
        try:
            # First, since listing may take longer than a tick: what is made from here on leaves another time.
            now_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
            before = os.stat(folder)  # noqa: PTH116 -- a path is text here: there may be thousands
            with os.scandir(folder) as entries:
                for entry in entries:
                    names.append(entry.name)
                    path = os.path.join(folder, entry.name)  # noqa: PTH118 -- as above
                    if path not in closed and not entry.is_symlink():
                        rights = self._rights if entry.is_dir(follow_symlinks=False) else self._file_rights
                        _allow(ruleset, path, rights & READ_FILE if path in readable else rights)
        except OSError as error:
            log.debug("tasks can use nothing that lies in %s: it cannot be listed: %s", folder, error.strerror)
            return None
        settled = _is_settled(before.st_mtime_ns, now_ns)
        return _Seen(before.st_dev, before.st_ino, before.st_mtime_ns, None if settled else sorted(names))


def _is_settled(changed_ns: int, now_ns: int) -> bool:
    """Whether any change of a folder from now on, by that clock, leaves another time than its last one."""
    return changed_ns < now_ns


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule for a path and all below it; one that has just gone needs none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _BENEATH.pack(rights, fd), 0)
    except OSError as error:
        log.debug("tasks cannot use %s: %s", path, error.strerror)
    finally:
        os.close(fd)


def _is_same(folder: str, seen: _Seen | None) -> bool:
    """Whether nothing was made in or removed from a folder."""
    try:
        now = os.stat(folder)  # noqa: PTH116 -- several for each process that is started
        if seen is None or (now.st_dev, now.st_ino, now.st_mtime_ns) != seen[:3]:
            return False
        return seen.names is None or sorted(os.listdir(folder)) == seen.names  # noqa: PTH208 -- as above
    except OSError:
        return seen is None


def names_of(path: str, mounts: str) -> list[str]:
    """All paths that lead to a file or folder, itself first: a part of a file system can be mounted in several places.

    `mounts` is the text of /proc/PID/mountinfo.
    """
    table = [_mount(line) for line in mounts.splitlines()]
    holders = [one for one in table if _is_within(path, one.point)]
    if not holders:
        return [path]
    # The last of several at one place is the one on top.
    holder = max(enumerate(holders), key=lambda one: (len(one[1].point), one[0]))[1]
    place = _moved(path, holder.point, holder.root)
    names = [path]
    for mount in table:
        if mount.device != holder.device:
            continue
        if _is_within(place, mount.root):
            names.append(_moved(place, mount.root, mount.point))
        elif _is_within(mount.root, place):
            names.append(mount.point)
    return list(dict.fromkeys(names))


class _Mount(NamedTuple):
    """The folder `root` of the file system `device` is at `point`."""

    device: str
    root: str
    point: str


def _mount(line: str) -> _Mount:
    device, root, point = line.split(" ")[2:5]
    return _Mount(device, _unescaped(root), _unescaped(point))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _moved(path: str, folder: str, to: str) -> str:
    """The path of what is `path` below `folder`, when that folder is at `to`."""
    parts = [part for part in f"{to}/{path[len(folder) :]}".split("/") if part]
    return "/" + "/".join(parts)
