"""What the runners need of the daemon: processes, folders, programs, payloads, the way back to the core.

Owns the descriptors and folders that all runners share. Must not know what a task's result means.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from districomp.model import INLINE_BYTES_MAX, Blob
from districomp.taskdef import Definition
from dworker.cache import Bundle, Cache
from dworker.events import AttemptsEnded, Events
from dworker.runners import cgroups, environment, landlock, sandbox
from dworker.runners.folders import Folders, emptied
from dworker.runners.spawn import Ending, Exit, Lasts, Request, make_spawner
from dworker.runners.trees import KILL

log = logging.getLogger(__name__)

KILL_S: Final = 10.0
"""Between TERM and KILL."""
STRAYS_S: Final = 5.0
"""A process that was killed takes this long to die at most; whoever it belonged to has ended then in any case."""
_CLEAR_S: Final = 0.002
_BOX_PROCESSES: Final = 2
"""A bubblewrap and its first process, which are not the task's."""


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
        self._lasting: dict[int, Callable[[Lasts], None]] = {}
        self._grouped: dict[int, cgroups.Group] = {}
        self.sandbox = sandbox.find()
        self.groups = cgroups.find()
        self._spawner = make_spawner(self._ended, self._lasts, make_guard(root, self.groups))

    @staticmethod
    def now() -> float:
        """The core's clock."""
        return time.monotonic()

    def start(
        self, request: Request, on_end: Callable[[Ending], None], on_last: Callable[[Lasts], None] | None = None
    ) -> int:
        """Start a process; its key for `kill`. `on_end` is called once, never before this returns; `on_last` if it is captured."""
        self._keys += 1
        self._ends[self._keys] = on_end
        if on_last is not None:
            self._lasting[self._keys] = on_last
        if request.group is not None:
            self._grouped[self._keys] = request.group
        self._spawner.spawn(self._keys, request)
        return self._keys

    def isolated(
        self,
        request: Request,
        definition: Definition,
        bundle: Bundle | None,
        open_fds: Callable[[], tuple[int, ...]],
    ) -> Request:
        """A process as its definition's isolation has it, its descriptors opened. OSError leaves nothing."""
        if not {"sandbox", "cgroup"}.intersection(definition.isolation):
            return request._replace(fds=open_fds())
        with contextlib.ExitStack() as undo:
            if "sandbox" in definition.isolation:
                request = self._boxed(request, definition, bundle)
                for fd in request.fds:
                    undo.callback(os.close, fd)
            group = self._group(definition)
            doors: tuple[int, ...] = ()
            if group is not None:
                undo.callback(group.remove)
                doors = (group.open(),)
                undo.callback(os.close, *doors)
            request = request._replace(fds=(*open_fds(), *request.fds, *doors), group=group)
            undo.pop_all()
        return request

    def _boxed(self, request: Request, definition: Definition, bundle: Bundle | None) -> Request:
        if self.sandbox is None:
            raise OSError(errno.ENOTSUP, "this worker has no sandbox")
        folder = bundle.folder if bundle is not None else None
        is_python = definition.runner == "python"
        return self.sandbox.box(request, network=definition.network, bundle=folder, is_python=is_python)

    def _group(self, definition: Definition) -> cgroups.Group | None:
        """A new control group, if it is to have one: in a sandbox where there are any, else where it is asked for."""
        is_boxed = "sandbox" in definition.isolation
        if "cgroup" not in definition.isolation and (not is_boxed or self.groups is None):
            return None
        if self.groups is None:
            raise OSError(errno.ENOTSUP, "this worker has no control groups")
        return self.groups.make(definition.limits, _BOX_PROCESSES if is_boxed else 0)

    def kill(self, key: int, number: int) -> None:
        """Signal a process' whole group; KILL takes all that it has started."""
        self._spawner.kill(key, number)
        if number == KILL and key in self._grouped:
            self._grouped[key].kill()

    def spool_path(self) -> Path:
        """A new name for a file of the spool."""
        self._spool_next += 1
        return self._spool / str(self._spool_next)

    def spool(self, event: AttemptsEnded) -> None:
        """Put the large results of attempts into the spool; one that the disk does not take has failed."""
        for place, (lease, result) in enumerate(zip(event.leases, event.results, strict=True)):
            if not isinstance(result, bytes) or len(result) <= INLINE_BYTES_MAX:
                continue
            path = self.spool_path()
            try:
                path.write_bytes(result)
            except OSError as error:
                path.unlink(missing_ok=True)
                event.reasons = event.reasons or ["done"] * len(event.leases)
                event.stderr = event.stderr or [b""] * len(event.leases)
                event.reasons[place], event.results[place] = "disk", None
                event.stderr[place] = f"The result could not be kept on this worker: {error.strerror}.".encode()
            else:
                self.spooled[lease] = path
                event.results[place] = Blob(hashlib.sha256(result).digest(), len(result))

    def discard(self, leases: list[int]) -> None:
        """Remove these spooled results."""
        for lease in leases:
            path = self.spooled.pop(lease, None)
            if path is not None:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Kill what runs, leave nothing behind."""
        await self._spawner.close()
        if self.groups is not None:
            self.groups.close()
        self.folders.close()
        self.spoolers.shutdown(wait=False, cancel_futures=True)
        self.lookers.shutdown(wait=False, cancel_futures=True)
        self.cleaners.shutdown(wait=False)

    def _lasts(self, key: int, lasts: Lasts) -> None:
        self._lasting[key](lasts)

    def _ended(self, key: int, ending: Ending) -> None:
        self._lasting.pop(key, None)
        group = self._grouped.get(key)
        if group is None:
            self._ends.pop(key)(ending)
        else:
            self._clear(key, ending, group, time.monotonic() + STRAYS_S)

    def _clear(self, key: int, ending: Ending, group: cgroups.Group, until: float) -> None:
        """End what a process has left in its control group; its own end is told when that has ended too."""
        if not group.is_empty() and time.monotonic() < until:
            group.kill()
            self.loop.call_later(_CLEAR_S, self._clear, key, ending, group, until)
            return
        del self._grouped[key]
        if isinstance(ending, Exit):
            over, cpu_s, memory_bytes = group.usage()
            cpu_s = ending.cpu_s if cpu_s is None else cpu_s
            memory_bytes = ending.memory_bytes if memory_bytes is None else memory_bytes
            ending = ending._replace(cpu_s=cpu_s, memory_bytes=memory_bytes, over=over if ending.status else "")
        assert self.groups is not None
        self.groups.discard(group)
        self._ends.pop(key)(ending)


def make_guard(root: Path, groups: cgroups.Tree | None) -> landlock.Guard | None:
    """What keeps all tasks from the keys in the worker's folder, from what others keep beside it, and from changing their limits.

    None without Landlock.
    """
    if not landlock.abi():
        log.info("this kernel has no Landlock: a task below the isolation level sandbox can read this worker's key")
        return None
    hidden = [root / name for name in ("identity", "id", "lock", "items", "spool")]
    # Others' folders: the coordinator's, and those of people who use dctl.
    hidden += [root.parent / "dcoord", root.parent / "client"]
    limits = [] if groups is None else [groups.base]
    return landlock.Guard(hidden, readable=[root / "bundles", *limits])
