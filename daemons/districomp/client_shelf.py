"""Results in task order: those that come before their turn wait on a shelf, in bounded memory however many they are.

The shelf writes what it cannot hold to a temporary file, in runs that are sorted by index, and merges them. Must not
know where results come from.
"""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace
from typing import IO, Final

import msgspec

from districomp.client_results import Requeued, TaskRecord

SHELF_BYTES: Final = 32 * 1024 * 1024
"""Results that wait for an earlier one are kept in memory up to this."""
READ_BYTES_MAX: Final = 64 * 1024
_SIZE_BYTES: Final = 4


def in_task_order(records: Iterable[TaskRecord | Requeued]) -> Iterator[TaskRecord]:
    """The same records by index, each as soon as all before it have come; after a gap at the end of the input.

    The last record of a task counts, until it is given out. What waits takes about SHELF_BYTES of memory at most.
    """
    shelf = _Shelf()
    following = 0
    try:
        for record in records:
            if isinstance(record, Requeued):
                shelf.drop(record.states)
            elif record.index == following:
                yield record
                following += 1
                while (waiting := shelf.take(following)) is not None:
                    yield waiting
                    following += 1
            elif record.index > following:
                shelf.put(record)
        yield from shelf.rest()
    finally:
        shelf.close()


class _Run:
    """A stretch of the file: records by index, each after its size."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file = file
        self._at = start
        self._end = end
        self._buffer = memoryview(b"")

    def next(self, read_bytes: int) -> TaskRecord | None:
        """The next record; None after the last. Reads about `read_bytes` at once."""
        if len(self._buffer) < _SIZE_BYTES:
            self._fill(max(read_bytes, _SIZE_BYTES))
        if not self._buffer:
            return None
        end = _SIZE_BYTES + int.from_bytes(self._buffer[:_SIZE_BYTES], "little")
        if len(self._buffer) < end:
            self._fill(max(read_bytes, end))
        record = _record_decoder.decode(self._buffer[_SIZE_BYTES:end])
        self._buffer = self._buffer[end:]
        return record

    def _fill(self, size: int) -> None:
        rest = bytes(self._buffer)
        self._file.seek(self._at)
        more = self._file.read(min(size - len(rest), self._end - self._at))
        self._at += len(more)
        self._buffer = memoryview(rest + more)


class _Shelf:
    """Records by index: the newest in memory, the others in runs. A later record of a task replaces an earlier one."""

    def __init__(self) -> None:
        self._held: dict[int, TaskRecord] = {}
        self._held_bytes = 0
        self._heads: list[tuple[int, int, TaskRecord, _Run]] = []
        """A heap of the runs' next records: their index, less their run's number (so the newest comes first), and they."""
        self._runs = 0
        self._void_up_to: dict[int, int] = {}
        """By state: records of it in runs up to this number do not stand."""
        self._file: IO[bytes] | None = None

    def put(self, record: TaskRecord) -> None:
        """Keep a record until its turn."""
        before = self._held.get(record.index)
        self._held_bytes += _memory_bytes(record) - (_memory_bytes(before) if before is not None else 0)
        self._held[record.index] = record
        if self._held_bytes > SHELF_BYTES:
            self._spill()

    def take(self, index: int) -> TaskRecord | None:
        """The record of a task, if it is here; nobody asks for one of a lower index afterwards."""
        newest: tuple[int, TaskRecord] | None = None
        while self._heads and self._heads[0][0] <= index:
            there, minus_run, record, run = self._heads[0]
            following = run.next(self._read_bytes())
            if following is None:
                heappop(self._heads)
            else:
                heapreplace(self._heads, (following.index, minus_run, following, run))
            if there == index and newest is None:
                newest = -minus_run, record
        held = self._held.pop(index, None)
        if held is not None:
            self._held_bytes -= _memory_bytes(held)
            return held
        if newest is None or newest[0] <= self._void_up_to.get(newest[1].state, 0):
            return None
        return newest[1]

    def drop(self, states: list[int]) -> None:
        """The records in these states that are here are void, and so is what they have replaced."""
        if self._runs and self._held:
            self._spill()
        self._held = {index: record for index, record in self._held.items() if record.state not in states}
        self._held_bytes = sum(map(_memory_bytes, self._held.values()))
        self._void_up_to.update(dict.fromkeys(states, self._runs))

    def rest(self) -> Iterator[TaskRecord]:
        """All that is here, by index."""
        held = sorted(self._held, reverse=True)
        while held or self._heads:
            index = min([*held[-1:], *(head[0] for head in self._heads[:1])])
            if held and held[-1] == index:
                held.pop()
            record = self.take(index)
            if record is not None:
                yield record

    def close(self) -> None:
        """Forget everything."""
        if self._file is not None:
            self._file.close()

    def _read_bytes(self) -> int:
        """How much is read of a run at once: all together no more than half of what may be held."""
        return min(READ_BYTES_MAX, SHELF_BYTES // (2 * self._runs))

    def _spill(self) -> None:
        """Write what is in memory as a run."""
        if self._file is None:
            from tempfile import TemporaryFile

            self._file = TemporaryFile()  # noqa: SIM115 - closed by close()
        start = self._file.seek(0, 2)
        for index in sorted(self._held):
            body = msgspec.msgpack.encode(self._held[index])
            self._file.write(len(body).to_bytes(_SIZE_BYTES, "little") + body)
        self._runs += 1
        run = _Run(self._file, start, self._file.tell())
        self._held.clear()
        self._held_bytes = 0
        first = run.next(self._read_bytes())
        assert first is not None, "only what holds something is written"
        self._heads.append((first.index, -self._runs, first, run))
        heapify(self._heads)


_record_decoder: msgspec.msgpack.Decoder[TaskRecord] = msgspec.msgpack.Decoder(TaskRecord)


def _memory_bytes(record: TaskRecord) -> int:
    inline = record.payload if isinstance(record.payload, bytes) else b""
    return 300 + len(inline) + len(record.stderr)
