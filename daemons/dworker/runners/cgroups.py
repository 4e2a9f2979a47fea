"""Control groups (version 2): one for each process that a runner starts, below the worker's own. With `limits.py` the only module that touches them.

Owns what lies in the group that was delegated to this worker: `daemon` with the daemon itself, because a group that
has processes cannot have groups with limits, and `tasks`, with a group for each process and all that it starts.
Must not know how a process gets there (it is given a descriptor of `cgroup.procs`), nor what its end means to a task.

Where a limit bites is told by counters that a group keeps: the kernel kills all that is in it for want of memory, and
refuses it another process. Both are read when the process has ended.
"""

import contextlib
import functools
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from districomp.taskdef import Limits

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NEEDED: Final = ("memory", "pids")
"""The controllers without which the level would promise what it cannot do."""
USED: Final = ("cpu", *NEEDED)
_PROCS: Final = "cgroup.procs"
_ENABLED: Final = "cgroup.subtree_control"
_MARKS: Final = ("trusted.delegate", "user.delegate")
"""systemd puts one of these on what it delegates; only root can read the first, version 251 has the second."""
_WEIGHT: Final = 100
_WEIGHT_MAX: Final = 10_000
_PROBE_S: Final = 10.0


class NoGroupsError(Exception):
    """Control groups cannot be used here; the message says why, and what to do."""


class Usage(NamedTuple):
    """What a group has used. `over`: the reason, of the closed list, why the kernel stopped it, '' if it did not. None: not told."""

    over: str
    cpu_s: float | None
    memory_bytes: int | None


class Group:
    """The control group of one process and all that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limit(self, limits: Limits, more_processes: int) -> None:
        """Set its limits. `more_processes`: how many of it are not the task's. OSError."""
        if limits.memory_bytes is not None:
            self._set("memory.max", limits.memory_bytes)
            with contextlib.suppress(OSError):  # a kernel without swap
                self._set("memory.swap.max", 0)
        with contextlib.suppress(OSError):  # before Linux 4.19
            # All of it or nothing: what is left of a task would hardly go on by itself.
            self._set("memory.oom.group", 1)
        if limits.processes is not None:
            self._set("pids.max", limits.processes + more_processes)
        if limits.cpus > 1:
            with contextlib.suppress(OSError):  # a share of what others want too, nothing of what is free
                self._set("cpu.weight", min(_WEIGHT * limits.cpus, _WEIGHT_MAX))

    def open(self) -> int:
        """A descriptor through which a process enters, by writing "0". OSError."""
        return os.open(self.folder / _PROCS, os.O_WRONLY | os.O_CLOEXEC)

    def is_empty(self) -> bool:
        """Whether no process is in there; those that have ended and nobody has waited for do not count."""
        return self._numbers("cgroup.events").get("populated", 0) == 0

    def kill(self) -> None:
        """SIGKILL to all that is in there, and to what it starts meanwhile; without cgroup.kill call it until `is_empty`."""
        try:
            self._set("cgroup.kill", 1)
        except OSError:  # before Linux 5.14
            with contextlib.suppress(OSError):
                self._set("pids.max", 0)  # it starts nothing any more
            for folder, _, _ in os.walk(self.folder):
                for pid in _pids(Path(folder)):
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)

    def usage(self) -> Usage:
        """What it has used so far."""
        over = ""
        if self._numbers("memory.events").get("oom_kill", 0):
            over = "memory"
        elif self._numbers("pids.events").get("max", 0):
            over = "processes"
        used_us = self._numbers("cpu.stat").get("usage_usec")
        peak = self._numbers("memory.peak").get("")  # since Linux 5.19
        return Usage(over, None if used_us is None else used_us / 1e6, peak)

    def remove(self) -> bool:
        """Remove it, if it is empty; whether it is gone."""
        return _remove(self.folder)

    def _set(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def _numbers(self, name: str) -> dict[str, int]:
        """A file's lines `NAME NUMBER`, or a lone number under ''; {} without that file."""
        try:
            lines = (self.folder / name).read_text().splitlines()
        except OSError:
            return {}
        pairs = (line.rpartition(" ") for line in lines)
        return {key: int(number) for key, _, number in pairs if number.isdigit()}


class Tree:
    """The worker's own group, and the groups of its tasks."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._tasks = base / "tasks"
        self._controllers: list[str] = []
        self._next = 0
        self._left: list[Group] = []  # could not be removed yet
        self._lock = -1

    def settle(self, own: Path) -> None:
        """Take it over: the daemon into a group of its own (`own` is where it is), nothing of a former one left. NoGroupsError, OSError."""
        self._controllers = (self.base / "cgroup.controllers").read_text().split()
        missing = [name for name in NEEDED if name not in self._controllers]
        if missing:
            raise NoGroupsError(f"{self.base} has no controller {' and no '.join(missing)} (version 1 may have it)")
        self._lock = os.open(self.base, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoGroupsError(f"{self.base} is in use by another worker") from None
        if own == self.base:
            self._move(self.base / "daemon")
        self._sweep()
        self._tasks.mkdir(exist_ok=True)
        self._enable(self._tasks)

    def _move(self, leaf: Path) -> None:
        leaf.mkdir(exist_ok=True)
        (leaf / _PROCS).write_text("0")
        try:
            self._enable(self.base)
        except OSError:
            others = " ".join(map(str, _pids(self.base)))
            with contextlib.suppress(OSError):
                (self.base / _PROCS).write_text("0")
                leaf.rmdir()
            if not others:
                raise
            raise NoGroupsError(f"{self.base} has other processes in it: {others}; start dworker alone there") from None

    def _enable(self, folder: Path) -> None:
        (folder / _ENABLED).write_text(" ".join(f"+{name}" for name in USED if name in self._controllers))

    def _sweep(self) -> None:
        """End and remove what a killed worker has left."""
        for folder in self._tasks.glob("*/"):
            group = Group(folder)
            group.kill()
            self._left.append(group)
        self._remove_left()

    def make(self, limits: Limits, more_processes: int = 0) -> Group:
        """A new group with a task's limits. OSError leaves none."""
        self._remove_left()
        while True:
            self._next += 1
            group = Group(self._tasks / str(self._next))
            try:
                group.folder.mkdir()
                break
            except FileExistsError:  # a killed worker's, in which something still dies
                continue
        try:
            group.limit(limits, more_processes)
        except OSError:
            group.remove()
            raise
        return group

    def discard(self, group: Group) -> None:
        """Remove a group; one that something still dies in later."""
        if not group.remove():
            self._left.append(group)

    def close(self) -> None:
        """End and remove all that is left."""
        self._sweep()
        with contextlib.suppress(OSError):
            self._tasks.rmdir()

    def _remove_left(self) -> None:
        if self._left:
            self._left = [group for group in self._left if not group.remove()]

    def probe(self) -> None:
        """See a process come under limits and be killed. OSError, subprocess.TimeoutExpired."""
        group = self.make(Limits(memory_bytes=1 << 30, processes=10))
        try:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
                try:
                    (group.folder / _PROCS).write_text(str(process.pid))
                    group.kill()
                    process.wait(_PROBE_S)
                finally:
                    process.kill()
        finally:
            self.discard(group)


def find() -> Tree | None:
    """The groups of this worker, if it was given any; found out once, and then it has moved into one of them."""
    found = _found()
    return found if isinstance(found, Tree) else None


def why_not() -> str:
    """Why there are none, as the end of a sentence; '' if there are."""
    found = _found()
    return found if isinstance(found, str) else ""


@functools.cache
def _found() -> Tree | str:
    try:
        own, base = locate(_text("/proc/self/cgroup"), _text("/proc/self/mountinfo"))
        tree = Tree(base)
        tree.settle(own)
        tree.probe()
    except (NoGroupsError, OSError, subprocess.TimeoutExpired) as error:
        log.debug("no isolation level cgroup: %s", error)
        return str(error)
    log.debug("tasks get control groups below %s", tree.base)
    return tree


def locate(cgroups: str, mounts: str) -> tuple[Path, Path]:
    """The group of this process, and the one that was delegated to it, which is that or the one above. NoGroupsError.

    The texts are /proc/self/cgroup and /proc/self/mountinfo.
    """
    own = _own(cgroups, mounts)
    for base in (own, own.parent):
        if _is_delegated(base):
            return own, base
    raise NoGroupsError(f"the control group {own} is not delegated to this worker (in its unit: Delegate=yes)")


def _own(cgroups: str, mounts: str) -> Path:
    name = next((line[3:] for line in cgroups.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if name is not None and after.startswith("cgroup2 "):
            root, point = before.split(" ")[3:5]
            if name == root or name.startswith(root.rstrip("/") + "/"):
                return Path(_unescaped(point)) / name[len(root.rstrip("/")) :].lstrip("/")
    raise NoGroupsError("this machine has no control groups of version 2 mounted, or this process is outside of them")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_delegated(folder: Path) -> bool:
    """Whether somebody has given a group away: systemd says so by a mark, and others by its owner."""
    if not os.access(folder / _PROCS, os.W_OK):
        return False
    for mark in _MARKS:
        with contextlib.suppress(OSError):
            return os.getxattr(folder, mark) == b"1"
    me = os.geteuid()
    return me != 0 and folder.stat().st_uid == me and folder.parent.stat().st_uid != me


def _text(path: str) -> str:
    if sys.platform != "linux":
        raise NoGroupsError("only Linux has control groups")
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def _pids(folder: Path) -> list[int]:
    """The processes in a group itself; those that cannot be seen from here are 0 there, and left out."""
    try:
        return [pid for pid in map(int, (folder / _PROCS).read_text().split()) if pid]
    except OSError:
        return []


def _remove(folder: Path) -> bool:
    """Remove a group and those below it; whether all is gone."""
    for inner, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(inner)  # noqa: PTH106 -- once a task
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
