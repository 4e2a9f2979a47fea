"""Starting processes: the worker's side of the spawn server, and plain `subprocess` where that cannot be.

Owns how a process is started, signalled and waited for. Must not know what a task is: a process has a
key, a folder, arguments, an environment and three descriptors.
"""

import asyncio
import contextlib
import errno
import logging
import marshal
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from dworker.runners import limits, pipes, trees
from dworker.runners.capture import open_input
from dworker.runners.cgroups import Group
from dworker.runners.landlock import Guard
from dworker.runners.orphans import children
from dworker.runners.prctl import become_reaper

log = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct("=I")
_RECEIVE_BYTES: Final = 64 * 1024
_FDS_MAX: Final = 2
"""What a reply has: the kernel never gives those of two at once."""
_RESTART_S: Final = 0.5
"""A spawn server that dies is started again after this; one start that fails is tried again as often."""


_PACKAGES: Final = Path(__file__).parents[2]
# Not as a script: so its compilation is kept, and its few modules find each other.
_SERVER: Final = (
    "import sys; sys.path.append(sys.argv[1]); from dworker.runners import spawnd; spawnd.main(int(sys.argv[2]))"
)
_GENERATIONS_MAX: Final = 1000
"""Killing an orphan makes orphans of its children."""


class Request(NamedTuple):
    """One process to be started. `program` is a path; the descriptors become its 0, 1 and 2 and are closed here.

    `is_boxed`: it is a bubblewrap, with a fourth descriptor of arguments to itself; see `sandbox.py`. With a `group` there
    is a last one, by which the process enters that before it is the program.

    If it is `captured`, what it writes comes with its end, or through pipes if it lasts; then `captured` is the content of its
    standard input, or True and the first descriptor is that, and there are no others of it. In a `slot` it waits for the one
    before, for some milliseconds: -1 is none, and only a spawner that `queues` knows others.
    """

    folder: str
    program: str
    argv: list[str]
    env: dict[str, str]
    fds: tuple[int, ...]
    is_boxed: bool = False
    group: Group | None = None
    captured: bytes | bool | None = None
    slot: int = -1


class Said(NamedTuple):
    """What a captured process that did not last has written, all of it, and when it ran."""

    started: float
    ended: float
    out: bytes
    err: bytes


class Lasts(NamedTuple):
    """A captured process lasts: the reading ends of its pipes, the receiver's to close, and what was read of them before."""

    started: float
    out_fd: int
    err_fd: int
    out: bytes = b""
    err: bytes = b""


class Exit(NamedTuple):
    """How a process ended: `os.wait4`'s status, processor seconds, peak memory in bytes (its starter's at least); None: unknown.

    `over`: the reason, of the closed list, why the kernel stopped it or refused it something, '' if not. `said`: of a captured
    one that did not last.
    """

    status: int
    cpu_s: float | None
    memory_bytes: int | None
    over: str = ""
    said: Said | None = None


class NotStarted(NamedTuple):
    """The system refused to start it. No errno: a sandbox could not be made or not start it, as its standard error says."""

    errno: int
    text: str
    err: bytes = b""


class Returned(NamedTuple):
    """It was not started: the one before it in its slot lasts, or it was to be killed."""


class Lost(NamedTuple):
    """The spawn server died, and with it the process."""


Ending = Exit | NotStarted | Lost | Returned
OnEnd = Callable[[int, Ending], None]
OnLast = Callable[[int, Lasts], None]


def _nobody(key: int, _: Lasts) -> None:
    raise AssertionError(f"process {key} is captured, and nobody takes its pipes")


class Spawner(Protocol):
    """Starts processes, each leader of a group of its own that ends with it. Calls `on_end(key, ending)` for each, once.

    Before that `on_last(key, lasts)` once at most, for one that is captured.
    """

    def spawn(self, key: int, request: Request) -> None:
        """Start a process; its end, or that it did not start, comes by `on_end`."""

    def kill(self, key: int, number: int) -> None:
        """Signal its process group; nothing happens if it has ended."""

    async def close(self) -> None:
        """Kill whatever runs; nothing is told any more."""


def can_queue() -> bool:
    """Whether this system's spawner has slots in which one process follows another."""
    able = all((hasattr(os, "posix_spawn"), hasattr(socket, "send_fds"), hasattr(os, "waitid")))
    return able and sys.platform == "linux"


def make_spawner(on_end: OnEnd, on_last: OnLast, guard: Guard | None) -> Spawner:
    """The best that this system has. `guard`: what all processes are kept away from, where the kernel can; the spawner's to close."""
    return SpawnServer(on_end, guard, on_last) if can_queue() else PlainSpawner(on_end, on_last)


class SpawnServer:
    """The spawn server and the connection to it. To be made in a running event loop.

    This process becomes a reaper too: should the server die, what it had started becomes ours, and is
    killed. So nothing else may start children here once this exists.
    """

    def __init__(self, on_end: OnEnd, guard: Guard | None = None, on_last: OnLast = _nobody) -> None:
        self._on_end = on_end
        self._on_last = on_last
        self._guard = guard
        self._guard_is_fresh = False
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, int] = {}  # key -> pid, 0 until it is known
        self._buffer = bytearray()
        self._fds: list[int] = []  # that came with what is in the buffer
        self._unsent: list[tuple[bytes, tuple[int, ...]]] = []
        self._is_turn_due = False
        self._closed = False
        become_reaper()
        self._not_ours = frozenset(children())
        self._start()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def spawn(self, key: int, request: Request) -> None:
        """See Spawner."""
        if self._socket.fileno() < 0:
            _close(request.fds)
            self._loop.call_soon(self._on_end, key, Lost())
            return
        if self._guard is not None and not request.is_boxed and not self._guard_is_fresh:
            try:
                ruleset = self._guard.renewed()
            except OSError as error:
                _close(request.fds)
                why = f"it cannot be kept from this worker's key: {error}"
                self._loop.call_soon(self._on_end, key, NotStarted(errno.EIO, why))
                return
            self._guard_is_fresh = True
            if ruleset is not None:
                self._send(("guard",), (ruleset,))
        self._running[key] = 0
        folder, program, argv, env, fds, is_boxed, group, captured, slot = request
        self._send(("spawn", key, slot, folder, program, argv, env, captured, is_boxed, group is not None), fds)

    def kill(self, key: int, number: int) -> None:
        """See Spawner."""
        if key in self._running:
            self._send(("kill", key, int(number)), ())

    async def close(self) -> None:
        """See Spawner."""
        self._closed = True
        self._disconnect()
        if self._guard is not None:
            self._guard.close()
        await asyncio.to_thread(self._process.wait)

    def _start(self) -> None:
        if self._guard is not None:
            self._guard.forget()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SERVER, str(_PACKAGES), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        limits.restore(self._process.pid)
        self._socket = ours
        self._loop.add_reader(ours.fileno(), self._readable)

    def _disconnect(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
        self._buffer.clear()
        _close(self._fds)
        self._fds.clear()
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()

    def _send(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        body = marshal.dumps(message)
        frame = _LENGTH.pack(len(body)) + body
        # What is asked for in one turn of the loop goes out at its end, in one piece where no descriptors are between.
        if self._unsent and not fds and not self._unsent[-1][1]:
            self._unsent[-1] = self._unsent[-1][0] + frame, ()
        else:
            self._unsent.append((frame, fds))
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turn_due = self._guard_is_fresh = False
        if self._socket.fileno() >= 0:
            self._writable()

    def _writable(self) -> None:
        while self._unsent:
            frame, fds = self._unsent[0]
            try:
                sent = socket.send_fds(self._socket, [frame], fds) if fds else self._socket.send(frame)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._writable)
                return
            except OSError:
                return  # the reader hears of it too, and does what is to be done
            _close(fds)
            if sent == len(frame):
                del self._unsent[0]
            else:
                self._unsent[0] = (frame[sent:], ())
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _RECEIVE_BYTES, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds += fds
        if not data:
            self._died()
            return
        buffer = self._buffer
        buffer += data
        start = 0
        replies: list[tuple[Any, ...]] = []
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if len(buffer) - start - _LENGTH.size < size:
                break
            start += _LENGTH.size
            replies += marshal.loads(bytes(buffer[start : start + size]))
            start += size
        del buffer[:start]
        for reply in replies:
            self._on_reply(*reply)

    def _on_reply(self, kind: str, key: int, *rest: Any) -> None:
        if kind == "exited":
            del self._running[key]
            status, cpu_s, memory_bytes, *said = rest
            self._on_end(key, Exit(status, cpu_s, memory_bytes, "", Said(*said) if said else None))
        elif kind == "pid":
            self._running[key] = rest[0]
        elif kind == "lasts":
            self._running[key], started, out, err = rest
            self._on_last(key, Lasts(started, self._fds.pop(0), self._fds.pop(0), out, err))
        else:
            del self._running[key]
            self._on_end(key, NotStarted(*rest) if kind == "failed" else Returned())

    def _died(self) -> None:
        """Nobody reaps the tasks any more: end them, tell their owners, and begin anew."""
        self._disconnect()
        lost, self._running = self._running, {}
        status = self._process.wait()
        for pid in lost.values():
            if pid:
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
        self._kill_orphans()
        log.error("the spawn server died (status %d); %d processes are lost; starting another", status, len(lost))
        self._restart()
        for key in lost:
            self._on_end(key, Lost())

    def _kill_orphans(self) -> None:
        """What the server had started: those of other sessions and those it had no time to name are ours now."""
        for _ in range(_GENERATIONS_MAX):
            orphans = [pid for pid in children() if pid not in self._not_ours]
            if not orphans:
                return
            for pid in orphans:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def _restart(self) -> None:
        if self._closed:
            return
        try:
            self._start()
        except OSError as error:
            log.error("the spawn server cannot be started: %s; trying again", error)
            self._loop.call_later(_RESTART_S, self._restart)


class PlainSpawner:
    """`subprocess` and a thread a process: for systems without posix_spawn or descriptor passing, which have no guard either.

    It promises less: what leaves its process group, on Windows all that outlives the process, is not found (`trees.py`),
    and should this daemon be killed, its tasks run on.
    """

    def __init__(self, on_end: OnEnd, on_last: OnLast = _nobody) -> None:
        self._on_end = on_end
        self._on_last = on_last
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._closed = False

    def spawn(self, key: int, request: Request) -> None:
        """See Spawner."""
        assert request.slot < 0
        lasts = None
        try:
            (stdin, stdout, stderr), lasts = self._descriptors(request)
        except OSError as error:
            self._loop.call_soon(self._on_end, key, NotStarted(error.errno or 0, str(error)))
            return
        try:
            process = subprocess.Popen(
                request.argv,
                executable=request.program,
                cwd=request.folder,
                env=request.env,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                **trees.START,
            )
        except (OSError, ValueError) as error:
            number = error.errno or 0 if isinstance(error, OSError) else 0
            self._loop.call_soon(self._on_end, key, NotStarted(number, str(error)))
            if lasts is not None:
                _close((lasts.out_fd, lasts.err_fd))
            return
        finally:
            _close((stdin, stdout, stderr))
        if lasts is not None:
            self._loop.call_soon(self._on_last, key, lasts)
        self._running[key] = process
        threading.Thread(target=self._wait, args=(key, process), daemon=True).start()

    def _descriptors(self, request: Request) -> tuple[tuple[int, int, int], Lasts | None]:
        """A process' three, and our ends of its pipes if it is captured. OSError leaves none open."""
        if request.captured is None:
            stdin, stdout, stderr = request.fds  # nothing is boxed here: a sandbox needs Linux
            return (stdin, stdout, stderr), None
        opened = list(request.fds)
        try:
            if isinstance(request.captured, bytes):
                opened.append(open_input(request.captured))
            opened += pipes.reading()
            opened += pipes.reading()
        except OSError:
            _close(opened)
            raise
        stdin, out, out_theirs, err, err_theirs = opened
        return (stdin, out_theirs, err_theirs), Lasts(time.monotonic(), out, err)

    def kill(self, key: int, number: int) -> None:
        """See Spawner."""
        process = self._running.get(key)
        if process is not None:
            trees.send(process, number)

    async def close(self) -> None:
        """See Spawner."""
        self._closed = True
        await asyncio.gather(*(asyncio.to_thread(trees.kill, process) for process in self._running.values()))

    def _wait(self, key: int, process: "subprocess.Popen[bytes]") -> None:
        ending = Exit(*trees.wait(process))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, key, ending)

    def _ended(self, key: int, ending: Exit) -> None:
        del self._running[key]
        if not self._closed:
            self._on_end(key, ending)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
