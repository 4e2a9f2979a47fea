"""A job's items as far as they are in memory: the chunks that are leased from now, read ahead, then dropped.

Items of queued tasks live in the journal, in chunks; memory does not grow with the queue. Knows chunk
boundaries and asks for chunks by index; who reads them is the driver's business.
"""

from bisect import bisect_right
from typing import Final

from districomp.model import Item, item_content

KEPT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Chunks just submitted stay in memory, all jobs together, up to this; above it they are read when their turn comes."""

_ITEM_OVERHEAD_BYTES: Final = 40


def items_bytes(items: list[Item]) -> int:
    """About how much memory a chunk takes."""
    return sum(_ITEM_OVERHEAD_BYTES + len(item) if isinstance(item, bytes) else _file_bytes(item) for item in items)


def _file_bytes(item: Item) -> int:
    content = item_content(item)
    return 4 * _ITEM_OVERHEAD_BYTES + (len(content) if isinstance(content, bytes) else 0)


class Payloads:
    """The chunks of one job. `firsts` are the indices at which they begin, ascending from 0."""

    __slots__ = ("_asked", "_loaded", "count", "firsts", "kept_bytes")

    def __init__(self, firsts: list[int], count: int) -> None:
        self.firsts = firsts
        self.count = count
        self.kept_bytes = 0
        self._loaded: dict[int, list[Item]] = {}
        self._asked: dict[int, None] = {}

    def keep(self, first: int, items: list[Item]) -> None:
        """A chunk is here: just submitted, or read."""
        self._asked.pop(first, None)
        if first not in self._loaded:
            self._loaded[first] = items
            self.kept_bytes += items_bytes(items)

    def chunk_of(self, index: int) -> tuple[int, int]:
        """The indices first (inclusive) and end (exclusive) of the chunk that holds `index`."""
        place = bisect_right(self.firsts, index)
        return self.firsts[place - 1], self.firsts[place] if place < len(self.firsts) else self.count

    def loaded(self, index: int) -> tuple[int, list[Item]] | None:
        """The chunk that holds `index` and where it begins, if it is in memory."""
        first = self.firsts[bisect_right(self.firsts, index) - 1]
        items = self._loaded.get(first)
        return None if items is None else (first, items)

    def want(self, index: int) -> int | None:
        """The first index of the chunk that must be read for `index`; None if it is here or on its way."""
        if index >= self.count:
            return None
        first = self.firsts[bisect_right(self.firsts, index) - 1]
        if first in self._loaded or first in self._asked:
            return None
        self._asked[first] = None
        return first

    def drop_all_but(self, index: int) -> None:
        """Keep the chunk that holds `index`, which is leased next (none if it is the job's size), and the one after it."""
        kept = self.chunk_of(index) if index < self.count else ()
        for first in [first for first in self._loaded if first not in kept]:
            self.kept_bytes -= items_bytes(self._loaded.pop(first))

    def clear(self) -> None:
        """The job needs no item any more."""
        self._loaded.clear()
        self._asked.clear()
        self.kept_bytes = 0
