"""Working directories: a fresh one for each process, its bundle linked into it, gone afterwards.

One that its process has not touched serves again: `stat` says so for a fiftieth of what removing and
making another costs (ext4 looks through everything that was deleted in the last seconds first).
"""

import asyncio
import contextlib
import os
import shutil
import stat
import sys
import time
from collections import deque
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final, NamedTuple

from districomp.errors import ConfigError

SPARE_MAX: Final = 64
SPARE_S: Final = 1.0
"""An untouched folder that nobody needs is removed after this."""
_MODE: Final = stat.S_IFDIR | 0o700
_TICK_NS: Final = 20_000_000
"""A file system's clock may stand still for a few milliseconds: two changes closer together may leave the same time."""


class _Made(NamedTuple):
    """What a folder was when it was made. `key`: folders with the same one are interchangeable.

    `is_settled`: it was handed out so long after that any change has left another time.
    """

    key: str
    changed_ns: int
    entries: list[str]
    is_settled: bool = False


def emptied(root: Path, executor: Executor) -> Path:
    """A folder, there and empty: what a killed worker left in it goes in a thread."""
    leftover = root.with_name(root.name + ".old")
    if root.exists():
        if leftover.exists():
            remove_tree(str(leftover))
        try:
            root.rename(leftover)
        except OSError as error:  # Windows: somebody's current folder is in there
            raise ConfigError(
                f"{root} is still used, perhaps by a task of a dworker that was killed: end it, then start again "
                f"({error.strerror})"
            ) from error
    if leftover.exists():
        executor.submit(remove_tree, str(leftover))
    root.mkdir(mode=0o700, parents=True)
    return root


class Folders:
    """Makes and removes folders below `root`. Removing is a thread's work: a task may leave a million files."""

    def __init__(self, root: Path, executor: Executor, loop: asyncio.AbstractEventLoop) -> None:
        self._root = str(root)
        self._executor = executor
        self._loop = loop
        self._next = 0
        self._made: dict[str, _Made] = {}
        self._spare: dict[str, deque[tuple[str, float]]] = {}  # key -> folders, and since when they are spare
        self._sweeper: asyncio.TimerHandle | None = None

    def make(self, bundle: Path | None, entries: list[str]) -> str:
        """A new folder, with a link to each of the bundle's top-level entries. OSError if the disk refuses."""
        key = str(bundle or "")
        spare = self._spare.get(key)
        if spare:
            folder = spare.pop()[0]
            made = self._made[folder]
            if not made.is_settled and time.time_ns() - made.changed_ns > _TICK_NS:
                self._made[folder] = made._replace(is_settled=True)
            return folder
        self._next += 1
        folder = f"{self._root}/{self._next}"
        os.mkdir(folder, 0o700)  # noqa: PTH102 -- once a task
        for entry in entries:
            _show(f"{bundle}/{entry}", f"{folder}/{entry}")
        self._made[folder] = _Made(key, os.stat(folder).st_ctime_ns, sorted(entries))  # noqa: PTH116 -- as above
        return folder

    def remove(self, folder: str) -> None:
        """Its process has ended: keep it if it is as it was made, else remove it and whatever was left there."""
        made = self._made[folder]
        spare = self._spare.setdefault(made.key, deque())
        if len(spare) < SPARE_MAX and _is_untouched(folder, made):
            spare.append((folder, self._loop.time()))
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SPARE_S, self._sweep)
        else:
            self._discard(folder)

    def close(self) -> None:
        """Remove the spare ones."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for spare in self._spare.values():
            for folder, _ in spare:
                self._discard(folder)
        self._spare.clear()

    def _sweep(self) -> None:
        before = self._loop.time() - SPARE_S
        for key, spare in list(self._spare.items()):
            while spare and spare[0][1] <= before:
                self._discard(spare.popleft()[0])
            if not spare:
                del self._spare[key]
        self._sweeper = self._loop.call_later(SPARE_S, self._sweep) if self._spare else None

    def _discard(self, folder: str) -> None:
        del self._made[folder]
        with contextlib.suppress(RuntimeError):  # the daemon is on its way out
            self._executor.submit(remove_tree, folder)


def _show(source: str, target: str) -> None:
    """Have a file or folder of a bundle appear in a working directory."""
    try:
        os.symlink(source, target)  # noqa: PTH211 -- once a task
    except OSError:
        if sys.platform != "win32":
            raise
        # There it takes a privilege that few users have.
        if os.path.isdir(source):  # noqa: PTH112 -- as above
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)


def _is_untouched(folder: str, made: _Made) -> bool:
    """Nothing was put there, and its permissions are those it was made with: the time of change cannot be forged."""
    try:
        now = os.stat(folder, follow_symlinks=False)  # noqa: PTH116 -- once a task
        same = now.st_ctime_ns == made.changed_ns and now.st_mode == _MODE
        return same and (made.is_settled or sorted(os.listdir(folder)) == made.entries)  # noqa: PTH208 -- as above
    except OSError:
        return False


def remove_tree(path: str) -> None:
    """Remove a tree, links not followed, folders without permissions included; what cannot go stays."""

    def again(function: Any, name: str, _: Any) -> None:
        with contextlib.suppress(OSError):
            Path(name).parent.chmod(stat.S_IRWXU)
            if not Path(name).is_symlink() and Path(name).is_dir():
                Path(name).chmod(stat.S_IRWXU)
                shutil.rmtree(name, ignore_errors=True)
            else:
                if sys.platform == "win32":
                    Path(name).chmod(stat.S_IWRITE)  # there a file itself says whether it may go
                function(name)

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=again)
    else:
        shutil.rmtree(path, onerror=again)
