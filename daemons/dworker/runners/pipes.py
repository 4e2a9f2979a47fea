"""Our ends of the pipes to and from tasks: never blocking, watched by the event loop.

Owns what differs between systems: here for Unix, where the loop watches a pipe as it does a socket, and in
`pipes_windows.py`, with the same functions, for where it cannot. Must not know what goes through a pipe.
"""

import os
import sys

if sys.platform == "win32":
    from dworker.runners.pipes_windows import (
        add_reader,
        add_writer,
        close_writing,
        read,
        reading,
        remove_reader,
        remove_writer,
        take_back,
        unread_bytes,
        wait,
        write,
        writing,
    )
else:
    import asyncio
    import select
    from collections.abc import Callable
    from typing import Any

    try:
        import fcntl
        import termios
    except ImportError:
        fcntl = termios = None  # type: ignore[assignment]

    PIPE_BYTES_MAX = 1024 * 1024
    """A pipe that we make holds less."""

    read = os.read
    """Up to so many bytes; b"" at the end. BlockingIOError if there is nothing yet."""
    write = os.write
    """How many of these bytes went in. BlockingIOError if there is no room, OSError if nobody can read them any more."""

    def reading() -> tuple[int, int]:
        """A pipe: its reading end, ours, and its writing end, theirs."""
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        return ours, theirs

    def writing() -> tuple[int, int]:
        """A pipe: its reading end, theirs, and its writing end, ours."""
        theirs, ours = os.pipe()
        os.set_blocking(ours, False)
        return theirs, ours

    def close_writing(fd: int) -> None:
        """Close our end of `writing`."""
        os.close(fd)

    def add_reader(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], Any]) -> None:
        """Have it called whenever there is something to read, or the end; of our end of `writing`: when nobody can read it."""
        loop.add_reader(fd, callback)

    def remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
        """The inverse of `add_reader`."""
        loop.remove_reader(fd)

    def add_writer(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], Any]) -> None:
        """Have it called whenever there is room."""
        loop.add_writer(fd, callback)

    def remove_writer(loop: asyncio.AbstractEventLoop, fd: int) -> None:
        """The inverse of `add_writer`."""
        loop.remove_writer(fd)

    def wait(fd: int, limit_s: float) -> None:
        """In a thread: wait until there is something to read, or the end, or so long."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(limit_s * 1000)

    def take_back(fd: int) -> bytes:
        """Take out all that was written into a pipe and not read yet, at once: what the other end has, it has; b"" if that cannot be.

        Linux opens the pipe's reading end for us by the name of its writing end; one read empties it under its lock.
        """
        try:
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(reader, PIPE_BYTES_MAX)
        except BlockingIOError:
            return b""
        finally:
            os.close(reader)

    def unread_bytes(fd: int) -> int:
        """How much lies in a pipe, even if nobody can read it any more. 0 if the system does not say."""
        if fcntl is None or termios is None:
            return 0
        count = bytearray(4)
        try:
            fcntl.ioctl(fd, termios.FIONREAD, count)
        except OSError:
            return 0
        return int.from_bytes(count, sys.byteorder)


def opened() -> tuple[int, int, int, int, int, int]:
    """A process' standard input, theirs and ours; output, ours and theirs; error, ours and theirs. OSError leaves none open."""
    fds: list[int] = []
    try:
        fds += writing()
        fds += reading()
        fds += reading()
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    stdin, stdin_ours, stdout, stdout_theirs, stderr, stderr_theirs = fds
    return stdin, stdin_ours, stdout, stdout_theirs, stderr, stderr_theirs


__all__ = [
    "add_reader",
    "add_writer",
    "close_writing",
    "opened",
    "read",
    "reading",
    "remove_reader",
    "remove_writer",
    "take_back",
    "unread_bytes",
    "wait",
    "write",
    "writing",
]
