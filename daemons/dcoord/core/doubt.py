"""What is not known after a restart: the queued tasks that a worker may hold from before it.

A byte for each task between the first and the last of them, because there may be millions. Knows neither workers
nor when the doubt ends.
"""

from collections.abc import Iterator
from typing import Final

from districomp.model import QUEUED

_MARKED: Final = 1
_OF_STATES: Final = bytes(_MARKED if state == QUEUED else 0 for state in range(256))


class Doubt:
    """The tasks of one job that are in doubt: none, until `begin`."""

    __slots__ = ("_first", "_marks", "end")

    def __init__(self) -> None:
        self.end = 0
        """Nothing below it is leased anew before `clear`."""
        self._first = 0
        self._marks = bytearray()

    def begin(self, states: bytearray, end: int) -> None:
        """All that is queued below `end` is in doubt."""
        first = states.find(QUEUED, 0, end)
        if first < 0:
            return
        self.end = end
        self._first = first
        self._marks = states[first : states.rfind(QUEUED, first, end) + 1].translate(_OF_STATES)

    def __contains__(self, index: int) -> bool:
        return 0 <= index - self._first < len(self._marks) and self._marks[index - self._first] == _MARKED

    def __iter__(self) -> Iterator[int]:
        at = self._marks.find(_MARKED)
        while at >= 0:
            yield self._first + at
            at = self._marks.find(_MARKED, at + 1)

    def discard(self, index: int) -> None:
        """It is known now what became of this task, if it was in doubt."""
        if index in self:
            self._marks[index - self._first] = 0

    def clear(self) -> None:
        """Whoever has not spoken holds nothing."""
        self.end = 0
        self._marks = bytearray()
