"""The worker's side of a shelf: what a Python interpreter has answered and not written yet, in memory that both have mapped.

Owns the file behind it and when what lies there may be taken; `interpreter.py` has its layout and puts things
there. The task's code could write anything there, so whoever parses that must expect anything.
"""

import mmap
import os
import sys
from pathlib import Path
from typing import Final, NamedTuple

from dworker.runners.interpreter import LENGTH_BITS, SHELF_BYTES, SHELF_WORDS

NAME: Final = ".districomp-answers"
"""In the process' folder, until it is started."""
_BODY: Final = 8 * SHELF_WORDS


class Untold(NamedTuple):
    """What lies there: how many tasks were begun, how many answers were written to the pipe before these, and these."""

    begun: int
    written: int
    frames: bytes


class Shelf:
    """One interpreter's. OSError: it cannot be had, and the interpreter does without."""

    def __init__(self, folder: str) -> None:
        path = Path(folder, NAME)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Written, not merely stretched: a disk that is full later must not end the process.
            if os.write(fd, bytes(_BODY + SHELF_BYTES)) != _BODY + SHELF_BYTES:
                raise OSError(f"{path} could not be written")
            self._shared = mmap.mmap(fd, 0)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        self._seen = 0

    def look(self) -> Untold:
        """All that lies there, when the process is gone or will be; nothing if it was changed just now."""
        word = self._word()
        untold = self._untold(word)
        return untold if self._word() == word else Untold(0, 0, b"")

    def settled(self) -> Untold | None:
        """What lies there, if it was there already at the last look and so waits for a task that takes long.

        The process goes on meanwhile: what it has touched in the last moment is left to it.
        """
        word = self._word()
        is_settled = word == self._seen and word & (1 << LENGTH_BITS) - 1
        self._seen = word
        if not is_settled:
            return None
        untold = self._untold(word)
        return untold if self._word() == word else None

    @property
    def said_bytes(self) -> int:
        """How many bytes at the beginning of standard error are of tasks that were answered."""
        return self._at(2)

    def _word(self) -> int:
        return self._at(1)

    def _at(self, place: int) -> int:
        # Not by `struct`, which puts it together from bytes.
        with memoryview(self._shared) as bytes_, bytes_[:_BODY] as part, part.cast("Q") as words:
            return int(words[place])

    def _untold(self, word: int) -> Untold:
        size = min(word & (1 << LENGTH_BITS) - 1, SHELF_BYTES)
        return Untold(self._at(0), word >> LENGTH_BITS, self._shared[_BODY : _BODY + size])


def make(folder: str) -> Shelf | None:
    """A shelf for the process that is to be started in this folder; None where it cannot be had."""
    if sys.platform == "win32":
        return None  # a file that is open there keeps its name
    try:
        return Shelf(folder)
    except OSError:
        return None
