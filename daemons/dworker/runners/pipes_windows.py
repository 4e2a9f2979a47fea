"""Pipes on Windows, whose event loop cannot watch one: `pipes.py` says what each function does.

What can be read is asked for, ever again, while anybody wants to know (PeekNamedPipe); what is written is written by
a thread a pipe, which has one piece in hand. There is one event loop, in one thread.
"""

import _winapi
import asyncio
import contextlib
import msvcrt
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

# What is below is checked for that system, and for no other.
assert sys.platform == "win32"

PIPE_BYTES: Final = 256 * 1024
"""So that a program that writes fast is not kept waiting for the next time we ask."""
ASK_S: Final = 0.01
PIECE_BYTES: Final = 64 * 1024

_readers: dict[int, Callable[[], Any]] = {}
_feeders: "dict[int, _Feeder]" = {}
_asking: asyncio.Handle | None = None


def reading() -> tuple[int, int]:
    """See pipes."""
    ours, theirs = _winapi.CreatePipe(None, PIPE_BYTES)
    return msvcrt.open_osfhandle(ours, os.O_RDONLY), msvcrt.open_osfhandle(theirs, 0)


def writing() -> tuple[int, int]:
    """See pipes."""
    theirs, ours = _winapi.CreatePipe(None, PIPE_BYTES)
    fd = msvcrt.open_osfhandle(ours, 0)
    _feeders[fd] = _Feeder(fd)
    return msvcrt.open_osfhandle(theirs, os.O_RDONLY), fd


def close_writing(fd: int) -> None:
    """See pipes. What was written is still delivered, if anybody reads it."""
    _feeders.pop(fd).close()


def read(fd: int, count: int) -> bytes:
    """See pipes."""
    available = _available(fd)
    if available is None:
        return b""
    if not available:
        raise BlockingIOError
    return os.read(fd, min(count, available))


def write(fd: int, data: "memoryview | bytes") -> int:
    """See pipes."""
    return _feeders[fd].write(bytes(data[:PIECE_BYTES]))


def add_reader(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], Any]) -> None:
    """See pipes."""
    global _asking
    feeder = _feeders.get(fd)
    if feeder is not None:
        feeder.loop, feeder.on_deaf = loop, callback
        return
    _readers[fd] = callback
    if _asking is None:
        _asking = loop.call_soon(_ask, loop)


def remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """See pipes."""
    feeder = _feeders.get(fd)
    if feeder is not None:
        feeder.on_deaf = None
    _readers.pop(fd, None)


def add_writer(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], Any]) -> None:
    """See pipes."""
    _feeders[fd].wake(loop, callback)


def remove_writer(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """See pipes."""
    _feeders[fd].on_room = None


def wait(fd: int, limit_s: float) -> None:
    """See pipes."""
    end = time.monotonic() + limit_s
    while _available(fd) == 0 and time.monotonic() < end:
        time.sleep(ASK_S / 10)


def take_back(fd: int) -> bytes:
    """See pipes: it cannot be."""
    return b""


def unread_bytes(fd: int) -> int:
    """See pipes."""
    return _feeders[fd].unwritten


def _available(fd: int) -> int | None:
    """How much can be read; None at the end."""
    try:
        answer = _winapi.PeekNamedPipe(msvcrt.get_osfhandle(fd), 0)
    except OSError:  # everybody who could write is gone
        return None
    return int(answer[0])


def _ask(loop: asyncio.AbstractEventLoop) -> None:
    """Call whoever has something to read, then again in a moment."""
    global _asking
    if not _readers:
        _asking = None
        return
    _asking = loop.call_later(ASK_S, _ask, loop)
    for fd in list(_readers):
        if fd in _readers and _available(fd) != 0:
            _readers[fd]()


class _Feeder:
    """Writes into a pipe, in a thread of its own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._piece = b""
        self._is_deaf = self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.on_room: Callable[[], Any] | None = None
        self.on_deaf: Callable[[], Any] | None = None

    @property
    def unwritten(self) -> int:
        """Bytes in hand."""
        return len(self._piece)

    def write(self, piece: bytes) -> int:
        """Take it, if there is nothing in hand."""
        with self._changed:
            if self._is_deaf:
                raise BrokenPipeError
            if self._piece:
                raise BlockingIOError
            self._piece = piece
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return len(piece)

    def wake(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], Any]) -> None:
        """Call it when there is room, or never will be."""
        self.loop, self.on_room = loop, callback
        with self._changed:
            if not self._piece or self._is_deaf:
                loop.call_soon(self._tell)

    def close(self) -> None:
        """End, when what is in hand is written."""
        self.on_room = self.on_deaf = None
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is None:
            os.close(self._fd)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._piece or self._is_closed)
                piece = self._piece
            if not piece or self._is_deaf:
                os.close(self._fd)
                return
            try:
                written = os.write(self._fd, piece)
            except OSError:
                written = 0
            with self._changed:
                self._is_deaf = not written
                # What nobody could read stays in hand: so it is known that it was not read.
                self._piece = piece[written:]
            if self._is_deaf or not self._piece:
                with contextlib.suppress(RuntimeError, AttributeError):  # the loop is closed, or was never given
                    self.loop.call_soon_threadsafe(self._tell)  # type: ignore[union-attr]
            if self._is_deaf:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed)

    def _tell(self) -> None:
        """In the loop."""
        callback = self.on_room or (self.on_deaf if self._is_deaf else None)
        if callback is not None:
            callback()
