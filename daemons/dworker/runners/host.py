"""What the runners need of the daemon: processes, folders, programs, payloads, the way back to the core.

Owns the descriptors and folders that all runners share. Must not know what a task's result means.
"""

import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from districomp.taskdef import Definition
from dworker.cache import Bundle, Cache
from dworker.events import Events
from dworker.runners import environment, landlock, sandbox
from dworker.runners.folders import Folders, emptied
from dworker.runners.spawn import Ending, Request, make_spawner

log = logging.getLogger(__name__)

KILL_S: Final = 10.0
"""Between TERM and KILL."""
_READ: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0)


class Host:
    """One for all slots; to be made in a running event loop. `post` brings an event to the core."""

    def __init__(self, root: Path, slots: int, cache: Cache, post: Callable[[Events], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.cache = cache
        self.post = post
        self.programs = environment.Programs()
        self.base_env = environment.base()
        self.cleaners = ThreadPoolExecutor(1, "clean")
        self.lookers = ThreadPoolExecutor(1, "look")
        self.spoolers = ThreadPoolExecutor(slots, "spool")
        self.folders = Folders(emptied(root / "run", self.cleaners), self.cleaners, self.loop)
        self._spool = emptied(root / "spool", self.cleaners)
        self._spool_next = 0
        self.spooled: dict[int, Path] = {}
        """lease -> the file of a result that is too large for a report."""
        self._keys = 0
        self._ends: dict[int, Callable[[Ending], None]] = {}
        self.sandbox = sandbox.find()
        self._spawner = make_spawner(self._ended, make_guard(root))

    @staticmethod
    def now() -> float:
        """The core's clock."""
        return time.monotonic()

    def start(self, request: Request, on_end: Callable[[Ending], None]) -> int:
        """Start a process; its key for `kill`. `on_end` is called once, never before this returns."""
        self._keys += 1
        self._ends[self._keys] = on_end
        self._spawner.spawn(self._keys, request)
        return self._keys

    def isolated(
        self,
        request: Request,
        definition: Definition,
        bundle: Bundle | None,
        open_fds: Callable[[], tuple[int, int, int]],
    ) -> Request:
        """A process as its definition's isolation has it, its descriptors opened. OSError leaves none open."""
        if "sandbox" not in definition.isolation:
            return request._replace(fds=open_fds())
        if self.sandbox is None:
            raise OSError(errno.ENOTSUP, "this worker has no sandbox")
        folder = bundle.folder if bundle is not None else None
        is_python = definition.runner == "python"
        boxed = self.sandbox.box(request, network=definition.network, bundle=folder, is_python=is_python)
        try:
            return boxed._replace(fds=(*open_fds(), *boxed.fds))
        except OSError:
            os.close(boxed.fds[0])
            raise

    def kill(self, key: int, number: int) -> None:
        """Signal a process' whole group."""
        self._spawner.kill(key, number)

    def spool_path(self) -> Path:
        """A new name for a file of the spool."""
        self._spool_next += 1
        return self._spool / str(self._spool_next)

    def discard(self, leases: list[int]) -> None:
        """Remove these spooled results."""
        for lease in leases:
            path = self.spooled.pop(lease, None)
            if path is not None:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Kill what runs, leave nothing behind."""
        await self._spawner.close()
        self.folders.close()
        self.spoolers.shutdown(wait=False, cancel_futures=True)
        self.lookers.shutdown(wait=False, cancel_futures=True)
        self.cleaners.shutdown(wait=False)

    def _ended(self, key: int, ending: Ending) -> None:
        self._ends.pop(key)(ending)


def make_guard(root: Path) -> landlock.Guard | None:
    """What keeps all tasks away from the keys in the worker's folder, and from what others keep beside it; None without Landlock."""
    if not landlock.abi():
        log.info("this kernel has no Landlock: a task below the isolation level sandbox can read this worker's key")
        return None
    hidden = [root / name for name in ("identity", "id", "lock", "items", "spool")]
    # Others' folders: the coordinator's, and those of people who use dctl.
    hidden += [root.parent / "dcoord", root.parent / "client"]
    return landlock.Guard(hidden, readable=[root / "bundles"])


def open_input(data: bytes | Path) -> int:
    """A descriptor from which a process reads this: never a pipe, so that nobody waits for one who does not read."""
    if isinstance(data, Path):
        return os.open(data, _READ)
    if not data:
        return os.open(os.devnull, _READ)
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        fd = os.memfd_create("stdin")
    else:
        import tempfile

        # It has no name, or loses it when its last descriptor is closed (Windows).
        with tempfile.TemporaryFile(buffering=0) as file:
            fd = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
