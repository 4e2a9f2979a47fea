"""The process of the runner `python`: imports one function, then calls it for one task after another.

Run as a script by the worker's own interpreter, `python -I -B -X utf8 interpreter.py BUNDLE MODULE:FUNCTION
RESULT_BYTES_MAX SHELF`, with the bundle's folder first in `sys.path` ('' without one). Knows the standard library alone.

Frames, both ways: a kind, a code (one byte each), a size (4 bytes, native order), and so many bytes. To
the process, on standard input: PARAMS (the keyword arguments of what follows, in `marshal`; both sides are
the same interpreter, and the worker is trusted) and TASK (a task's data). From it, on standard output: one
frame a task, in their order. The worker never unmarshals what comes from here.

The task's code sees none of that: its standard input is empty and its standard output is standard
error.

Answers are written together once no task that was read is left, when they have waited for FLUSH_S, or when
they have no more room. Until then they lie in a shelf: a file that the worker made in this process' folder and
that both have mapped, without a name by the time that the task's code is loaded. So whatever ends this process,
all that was finished is known and the oldest task without an answer is the one to blame; and the worker takes
from there what waits behind a task that turns out long (`shelf.py`). SHELF is its name, '' for none: then each
answer is a write of its own.
"""

import faulthandler
import io
import marshal
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Final

HEADER: Final = struct.Struct("=BBI")
PARAMS: Final = 0
TASK: Final = 1

RESULT: Final = 0
FAILED: Final = 1
"""An exception: the text for standard error; the code is the exit code."""
INVALID: Final = 2
TOO_LARGE: Final = 3
NOT_STARTED: Final = 4
LAST: Final = 128
"""Added to a kind: this process ends now, and no task is to blame for that."""

SAID_BYTES: Final = 64 * 1024
"""How much of the end of what a failed task wrote is kept."""
_READ_BYTES: Final = 256 * 1024
_AHEAD_BYTES: Final = 256
"""So much is read at once while tasks are short, and not a byte beyond the next task once one was long: what is still
in the pipe when a task takes long, the worker can give to others."""
_SHORT_S: Final = 0.0005

SHELF_WORDS: Final = 3
"""The beginning of a shelf, 8 bytes each in native order: how many tasks were begun; how many answers were written to
the pipe, times 2**LENGTH_BITS, plus how many bytes of answers follow that were not; how many bytes the tasks that were
answered wrote to standard error by way of Python. Each changes by one store."""
LENGTH_BITS: Final = 20
SHELF_BYTES: Final = 64 * 1024
FLUSH_S: Final = 0.001
_BODY: Final = 8 * SHELF_WORDS


class Channel:
    """The worker's end of the conversation, out of the way of descriptors 0, 1 and 2. `shelf`: the file's name, or ''."""

    def __init__(self, shelf: str = "") -> None:
        # Not inheritable: what the task's code starts cannot reach them.
        self._reading, self._writing = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        self._room = self._length = self._newest = 0
        self._told = self._gathered = self._begun = 0
        self._flush_at = 0.0
        self._words = memoryview(bytearray(_BODY)).cast("Q")
        if shelf:
            self._share(shelf)
        self.is_abandoned = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._abandon)

    def _share(self, name: str) -> None:
        fd = os.open(name, os.O_RDWR)
        shared = mmap.mmap(fd, 0)
        os.close(fd)
        os.unlink(name)  # noqa: PTH108 -- nothing more is imported than is needed
        self._room = len(shared) - _BODY
        self._shelf = memoryview(shared)[_BODY:]
        self._words = memoryview(shared)[:_BODY].cast("Q")

    def _abandon(self) -> None:
        """A copy of this process, made by the task's code, is not this process."""
        self.is_abandoned = True
        os.close(self._reading)
        os.close(self._writing)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Kind and body of what the worker says, until it says no more."""
        buffer, start, ahead = b"", 0, HEADER.size
        while True:
            begun = time.perf_counter()
            self._flush_at = begun + FLUSH_S
            while len(buffer) - start >= HEADER.size:
                kind, _, size = HEADER.unpack_from(buffer, start)
                if len(buffer) - start - HEADER.size < size:
                    break
                start += HEADER.size + size
                if kind == TASK:
                    self._begun += 1
                    self._words[0] = self._begun
                yield kind, buffer[start - size : start]
            is_short = time.perf_counter() - begun < _SHORT_S
            self.flush()
            ahead = min(2 * ahead, _AHEAD_BYTES) if is_short else HEADER.size
            buffer, start = self._read(buffer[start:], ahead), 0
            if not buffer:
                return

    def _read(self, buffer: bytes, ahead: int) -> bytes:
        """A frame at least, that begins with `buffer`, and no more of what follows than `ahead`; b"" at the end."""
        if len(buffer) < HEADER.size:
            chunk = os.read(self._reading, max(ahead, HEADER.size) - len(buffer))
            while chunk and len(buffer) + len(chunk) < HEADER.size:
                buffer += chunk
                chunk = os.read(self._reading, HEADER.size - len(buffer))
            if not chunk:
                return b""
            buffer += chunk
        missing = HEADER.size + HEADER.unpack_from(buffer)[2] - len(buffer)
        chunks = [buffer]
        while missing > 0:
            chunk = os.read(self._reading, min(missing, _READ_BYTES))
            if not chunk:
                return b""
            chunks.append(chunk)
            missing -= len(chunk)
        return b"".join(chunks)

    def answer(self, kind: int, body: bytes, code: int = 0) -> None:
        """One task's frame, written now or soon."""
        frame = HEADER.pack(kind, code, len(body)) + body
        if self._length + len(frame) > self._room:
            self.flush()
        if len(frame) > self._room:
            self._write(frame)
            self._told += 1
            self._words[1] = self._told << LENGTH_BITS
            return
        self._newest, self._length = self._length, self._length + len(frame)
        self._shelf[self._newest : self._length] = frame
        self._gathered += 1
        self._words[1] = self._told << LENGTH_BITS | self._length
        if time.perf_counter() >= self._flush_at:
            self.flush()
            self._flush_at = time.perf_counter() + FLUSH_S

    def note_said(self, count: int) -> None:
        """All that was written to standard error so far, `count` bytes, is of tasks that were answered."""
        self._words[2] = count

    def flush(self) -> None:
        """Write what was answered."""
        if not self._length:
            return
        try:
            self._write(self._shelf[: self._length])
        except OSError:
            # A task has closed our descriptor. Take it to be the last one: one that has not begun is not to blame.
            self._words[1] = self._told << LENGTH_BITS | self._newest
            raise
        self._told += self._gathered
        self._length = self._gathered = 0
        self._words[1] = self._told << LENGTH_BITS

    def _write(self, frame: bytes | memoryview) -> None:
        written = os.write(self._writing, frame)
        while written < len(frame):
            written += os.write(self._writing, memoryview(frame)[written:])


class Said(io.RawIOBase):
    """Standard error, remembering the end of what the task in hand has written by way of Python, and `count`: all bytes ever.

    `is_touched`: something may have been written since it was last looked at, by whoever writes through it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tail = bytearray()
        self.count = 0
        self.is_touched = False

    def writable(self) -> bool:
        """io: yes."""
        return True

    def fileno(self) -> int:
        """io: standard error's."""
        return 2

    def write(self, data: Any) -> int:
        """io: pass it on."""
        self.is_touched = True
        count = os.write(2, data)
        self.count += count
        self.tail += memoryview(data)[:count]
        if len(self.tail) > 2 * SAID_BYTES:
            del self.tail[:-SAID_BYTES]
        return count


class Printer(io.TextIOWrapper):
    """Text for `said`, a line at a time. To flush what was never used costs more than a short task does, so it notes that it was.

    `is_bare`: somebody has what is below this, and writes unnoticed.
    """

    def __init__(self, said: Said) -> None:
        super().__init__(io.BufferedWriter(said), "utf-8", "backslashreplace", line_buffering=True)
        self._said = said
        self.is_bare = False

    def write(self, text: str) -> int:
        """io: as ever."""
        self._said.is_touched = True
        return super().write(text)

    @property
    def buffer(self) -> Any:
        """io: as ever."""
        self.is_bare = True
        return super().buffer

    def detach(self) -> Any:
        """io: as ever."""
        self.is_bare = True
        return super().detach()


class Printers:
    """`sys.stdout` and `sys.stderr` for the task's code: both go to standard error, a line at a time."""

    def __init__(self) -> None:
        self._said = Said()
        self._streams = Printer(self._said), Printer(self._said)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc]

    @property
    def count(self) -> int:
        """How many bytes were ever written."""
        return self._said.count

    def take(self) -> bytes:
        """What was written since the last time."""
        said = self._said
        if not (said.is_touched or self._streams[0].is_bare or self._streams[1].is_bare):
            return b""
        for stream in self._streams:
            try:
                stream.flush()
            except (ValueError, OSError):  # the task's code has closed it
                continue
        said.is_touched = False
        taken = bytes(said.tail)
        said.tail.clear()
        return taken


def load(name: str) -> Callable[..., Any] | tuple[int, bytes, int]:
    """The function, or the answer that says why there is none."""
    module_name, _, function_name = name.partition(":")
    try:
        __import__(module_name)  # unlike importlib's, it leaves its own frames out of tracebacks
    except ModuleNotFoundError as error:
        parents = (module_name, *(module_name[:end] for end, char in enumerate(module_name) if char == "."))
        if error.name in parents and _frames(error) is None:
            why = f"The module {module_name!r} is not in the definition's bundle: there is no {error.name}.py in it."
            return NOT_STARTED, why.encode(), 0
        return failure(error)
    except BaseException as error:  # noqa: BLE001 -- whatever a module does when it is imported
        return failure(error)
    found: Any = sys.modules[module_name]
    for part in function_name.split("."):
        known = dir(found)
        found = getattr(found, part, None)
        if found is None:
            near = get_close_matches(part, known, 1)
            why = f"The module {module_name!r} has no function {function_name!r}"
            return NOT_STARTED, f"{why}{f'; did you mean {near[0]!r}?' if near else '.'}".encode(), 0
    if not callable(found):
        why = f"{function_name!r} of the module {module_name!r} is not a function but {type(found).__name__!r}."
        return NOT_STARTED, why.encode(), 0
    function: Callable[..., Any] = found
    return function


def failure(error: BaseException) -> tuple[int, bytes, int]:
    """The answer for what the task's code raised: its traceback as it would be without us."""
    if isinstance(error, SystemExit):
        return _exit(error)
    try:
        told = traceback.TracebackException(type(error), error, _frames(error))
        text = "".join(told.format())
    except BaseException:  # noqa: BLE001 -- an exception may say anything when it is asked what it is
        text = f"{type(error).__name__}, whose traceback could not be written\n"
    return FAILED, text.encode("utf-8", "backslashreplace"), 1


def _exit(error: SystemExit) -> tuple[int, bytes, int]:
    """`sys.exit` means what it means in a program: a number is the exit code, anything else a last word and 1."""
    if error.code is None or error.code == 0:
        return INVALID, b"The function ended by sys.exit() and returned no result.", 0
    if isinstance(error.code, int):
        return FAILED, b"", error.code & 255 or 1
    try:
        return FAILED, f"{error.code}\n".encode("utf-8", "backslashreplace"), 1
    except Exception:  # noqa: BLE001 -- as above
        return FAILED, b"", 1


def _frames(error: BaseException) -> Any:
    """The traceback below our own frame, which is the first."""
    return error.__traceback__.tb_next if error.__traceback__ is not None else None


def result(value: Any, bytes_max: int, name: str) -> tuple[int, bytes, int]:
    """The answer for what the function returned."""
    if isinstance(value, bytes):
        body = value
    elif isinstance(value, str):
        try:
            body = value.encode()
        except UnicodeEncodeError as error:
            why = f"The text that {name} returned cannot be UTF-8: character {error.start} is half of a pair."
            return INVALID, why.encode(), 0
    else:
        why = f"{name} returned {type(value).__name__}; a task's function returns bytes or str."
        return INVALID, why.encode("utf-8", "backslashreplace"), 0
    if len(body) > bytes_max:
        return TOO_LARGE, f"The result has {len(body):,} bytes, {bytes_max:,} are allowed.".encode(), 0
    return RESULT, body, 0


def serve(channel: Channel, printers: Printers, name: str, bytes_max: int) -> None:
    """Answer one task after another, until the worker wants no more."""
    function = load(name)
    params: dict[str, Any] = {}
    lists: list[str] = []
    for kind, body in channel.frames():
        if kind == PARAMS:
            params = marshal.loads(body)
            lists = [key for key, value in params.items() if isinstance(value, list)]
            continue
        if isinstance(function, tuple):
            # Not remembered: the next process imports again, and may have more luck.
            why_not, words, code = function
            channel.answer(why_not | LAST, (printers.take() + words)[-SAID_BYTES:], code)
            channel.flush()
            return
        # The function may change its lists; they are also the next call's.
        given = params if not lists else params | {key: params[key].copy() for key in lists}
        try:
            value = function(body, **given)
        except BaseException as error:  # noqa: BLE001 -- the task's own, and nothing that it raises may end us
            answer = failure(error)
            del error
        else:
            answer = result(value, bytes_max, name)
            del value
        if channel.is_abandoned:
            os._exit(1)
        said = printers.take()
        if answer[0] != RESULT:
            answer = (answer[0], (said + answer[1])[-SAID_BYTES:], answer[2])
        channel.answer(*answer)
        if said:
            channel.note_said(printers.count)


def main() -> None:
    """Serve the function that the arguments name."""
    bundle, name, bytes_max, shelf = sys.argv[1:]
    channel = Channel(shelf)
    printers = Printers()
    # Where it was when it crashed or its time was up is said on standard error.
    faulthandler.enable(2)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGTERM, 2, all_threads=False, chain=True)
    sys.argv[1:] = []
    if bundle:
        sys.path.insert(0, bundle)
    serve(channel, printers, name, int(bytes_max))


if __name__ == "__main__":
    main()
