"""What a process reads and writes while the spawn server still holds its pipes. Must import next to nothing.

Most processes of a batch have ended within a few milliseconds and have said little: that little is read when their
end is known, and goes to the worker with it. Nobody watches their pipes, and no descriptor changes hands.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

READ_BYTES = 4096
READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
KEPT_BYTES_MAX = 64 * 1024
"""What a pipe takes by itself. Who has said more than this has made it larger: then the worker reads it."""


class Capture:
    """Our ends of one process' pipes. `since`: when it was started."""

    __slots__ = ("err", "out", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.out = self.err = -1

    def open(self, content: bytes | None, own: list[int]) -> list[int]:
        """The process' three descriptors, the caller's to close; its input has this content, or is the first of `own`. OSError."""
        theirs = [own.pop(0) if content is None else open_input(content)]
        try:
            self.out, writing = os.pipe2(os.O_CLOEXEC)
            theirs.append(writing)
            self.err, writing = os.pipe2(os.O_CLOEXEC)
            theirs.append(writing)
        except OSError:
            for fd in theirs:
                os.close(fd)
            self.close()
            raise
        os.set_blocking(self.out, False)
        os.set_blocking(self.err, False)
        return theirs

    def read(self) -> tuple[bytes, bytes, bool]:
        """What is in the pipes, and whether there is still more."""
        out, more_out = _drained(self.out)
        err, more_err = _drained(self.err)
        return out, err, more_out or more_err

    def close(self) -> None:
        """Nobody reads any more. Once more does nothing."""
        for fd in (self.out, self.err):
            if fd >= 0:
                os.close(fd)
        self.out = self.err = -1


def _drained(fd: int) -> tuple[bytes, bool]:
    """What is in a pipe, up to a bound, and whether there may be more."""
    data = b""
    try:
        data = os.read(fd, READ_BYTES)
        if len(data) < READ_BYTES:
            return data, False
        while chunk := os.read(fd, KEPT_BYTES_MAX):
            data += chunk
            if len(data) > KEPT_BYTES_MAX:
                return data, True
    except BlockingIOError:
        # Somebody whom it has left behind holds the other end; what came before that stands.
        pass
    return data, False


def open_input(data: "bytes | Path") -> int:
    """A descriptor from which a process reads this: never a pipe, so that nobody waits for one who does not read."""
    if not isinstance(data, bytes):
        return os.open(data, READ_FLAGS)
    if not data:
        return os.open(os.devnull, READ_FLAGS)
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
