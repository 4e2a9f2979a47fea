"""What a process writes: standard output as a result, standard error's tail. Bounded memory, whatever it does.

Owns the reading ends of two pipes. A result above the inline size goes to a file, read, hashed and
written by a thread, so that a gigabyte of output never stands in the event loop's way.
"""

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from districomp.model import INLINE_BYTES_MAX, STDERR_TAIL_BYTES, Blob
from dworker.runners import pipes

READ_BYTES: Final = 64 * 1024
_POLL_S: Final = 0.05
_SLACK: Final = 2 * STDERR_TAIL_BYTES


class Tail:
    """The last 64 KiB that come out of a pipe. Reads only when told: `watch` from then on, or `drain` at the end.

    `head`: what was read of it already.
    """

    __slots__ = ("_bytes", "_count", "_fd", "_loop", "_watching")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, head: bytes = b"") -> None:
        self._loop = loop
        self._fd = fd
        self._bytes = bytearray(head)
        self._count = len(head)
        self._watching = False

    def watch(self) -> None:
        """Read as it comes."""
        if self._fd >= 0 and not self._watching:
            self._watching = True
            pipes.add_reader(self._loop, self._fd, self._read)

    def drain(self) -> None:
        """Take what is there, up to a bound, and close: whoever still writes is not waited for."""
        for _ in range(16):
            if self._fd < 0 or not self._read():
                break
        self._close()

    def text(self, after: int = 0) -> bytes:
        """The tail so far, without the first `after` bytes of all that came."""
        gone = self._count - len(self._bytes)
        return bytes(self._bytes[max(0, after - gone) :][-STDERR_TAIL_BYTES:])

    def _read(self) -> bool:
        try:
            data = pipes.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._bytes += data
        self._count += len(data)
        if len(self._bytes) > _SLACK:
            del self._bytes[:-STDERR_TAIL_BYTES]
        return True

    def _close(self) -> None:
        if self._fd >= 0:
            if self._watching:
                pipes.remove_reader(self._loop, self._fd)
            os.close(self._fd)
            self._fd = -1


class Output:
    """A process' standard output. `new_path` names a file for a large result; `on_over` is called once when it passes `bytes_max`.

    `head`: what was read of it already.
    """

    __slots__ = (
        "_executor", "_fd", "_head", "_loop", "_new_path", "_on_over", "_over", "_process_ended", "_spool", "_watching",
        "bytes_max", "path",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        new_path: Callable[[], Path],
        executor: Executor,
        *,
        bytes_max: int | None,
        on_over: Callable[[], None],
        head: bytes = b"",
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._new_path = new_path
        self.path: Path | None = None
        self._executor = executor
        self._on_over = on_over
        self._over = False
        self._watching = False
        self._head = bytearray()
        self._spool: asyncio.Future[Blob] | None = None
        self._process_ended: threading.Event | None = None
        self.bytes_max = bytes_max
        if head:
            self._add(head)

    def watch(self) -> None:
        """Read as it comes."""
        if self._fd >= 0 and not self._watching and self._spool is None:
            self._watching = True
            pipes.add_reader(self._loop, self._fd, self._read)

    def finish(self) -> "bytes | asyncio.Future[Blob]":
        """The process has ended: its result, or the promise of one that is in a file. Called once."""
        while self._spool is None and self._fd >= 0 and self._read():
            pass
        if self._spool is not None:
            assert self._process_ended is not None
            self._process_ended.set()
            return self._spool
        self._close()
        return bytes(self._head)

    def discard(self) -> None:
        """Nobody wants the file of a large result."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> bool:
        try:
            data = pipes.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._add(data)
        return True

    def _add(self, data: bytes) -> None:
        self._head += data
        if self.bytes_max is not None and len(self._head) > self.bytes_max:
            self._exceed()
        if len(self._head) > INLINE_BYTES_MAX:
            self._unwatch()
            fd, self._fd = self._fd, -1
            self.path, self._process_ended = self._new_path(), threading.Event()
            self._spool = self._loop.run_in_executor(
                self._executor, self._spool_rest, fd, self.path, self._process_ended
            )

    def _exceed(self) -> None:
        if not self._over:
            self._over = True
            self._on_over()

    def _spool_rest(self, fd: int, path: Path, process_ended: threading.Event) -> Blob:
        """In a thread: the head and the rest into the file, until the end of the output or of the process."""
        try:
            with path.open("wb", buffering=0) as file:
                digest = hashlib.sha256()
                size, data = 0, bytes(self._head)
                while data:
                    size += len(data)
                    if self.bytes_max is not None and size > self.bytes_max:
                        with contextlib.suppress(RuntimeError):  # the loop is closed
                            self._loop.call_soon_threadsafe(self._exceed)
                    else:
                        digest.update(data)
                        file.write(data)
                    data = _wait_for_more(fd, process_ended)
            return Blob(digest.digest(), size)
        finally:
            os.close(fd)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            pipes.remove_reader(self._loop, self._fd)

    def _close(self) -> None:
        if self._fd >= 0:
            self._unwatch()
            os.close(self._fd)
            self._fd = -1


def _wait_for_more(fd: int, process_ended: threading.Event) -> bytes:
    while True:
        last = process_ended.is_set()
        try:
            return pipes.read(fd, READ_BYTES)
        except BlockingIOError:
            if last:
                return b""  # whoever holds the pipe open outlived the task
            pipes.wait(fd, _POLL_S)
