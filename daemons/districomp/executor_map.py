"""`Executor.map`: a bounded stretch of an input, perhaps endless, on its way to the workers and back.

Input is read, pickled and unpickled in the thread that iterates; the engine's thread only puts pickled results into
their places. Owns the look-ahead, order and chunks. Must not know connections.
"""

import io
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from typing import Any, Final

from districomp import executor_calls as calls
from districomp.client import Client
from districomp.client_results import TaskRecord
from districomp.executor_batch import BATCH_CALLS_MAX, BATCH_ITEMS_BYTES, Batch, item_cost
from districomp.executor_engine import Feed
from districomp.model import CANCELLED, INLINE_BYTES_MAX, Item, Payload, task_text

BUFFER_CALLS: Final = 10_000
"""So many calls are read ahead of what was taken."""
BUFFER_BYTES: Final = 64 * 1024 * 1024
"""But no more than this of pickled arguments: they are in memory, here and at the coordinator."""
PARTS: Final = 8
"""A job has at most such a part of the look-ahead, so that new ones follow while others are worked on."""
GROWTH: Final = 16
"""Tasks that bring a large function each have one call more after every so many, up to LARGE_CHUNK_MAX."""
LARGE_CHUNK_MAX: Final = 64

_TAKEN: Final = object()


class MapBatch(Batch):
    """A job of a map. `results`: by index, None until it is there; bytes, a Blob, or an exception; _TAKEN afterwards."""

    __slots__ = ("_left", "_run", "bytes", "results")

    def __init__(self, run: "MapRun", name: str, params: dict[str, str], items: list[Item]) -> None:
        super().__init__(name, params, items)
        self.bytes = sum(map(item_cost, items))
        self._left = len(items)
        self.results: list[Any] = [None] * len(items)
        self._run = run

    def done(self, indexes: list[int], results: Sequence[Payload | None]) -> None:
        """See Batch."""
        mine = self.results
        for index, body in zip(indexes, results, strict=True):
            if mine[index] is None:  # else it had ended before, and a person had it run again
                mine[index] = body or b""
            else:
                indexes = [other for other in indexes if other != index]
        self._run.told(self, indexes)

    def failed(self, index: int, record: TaskRecord) -> None:
        """See Batch."""
        if self.results[index] is None:
            self.results[index] = CancelledError() if record.state == CANCELLED else calls.failure(record)
            self._run.told(self, [index])

    def rest(self, error: BaseException | None) -> None:
        """See Batch."""
        missing = [index for index, result in enumerate(self.results) if result is None]
        for index in missing:
            self.results[index] = error or CancelledError()
        self._run.told(self, missing)

    def share(self) -> int:
        """How many of its bytes go with its next task, whichever that is; of all its tasks all of them."""
        bytes_ = self.bytes // self._left
        self.bytes -= bytes_
        self._left -= 1
        return bytes_

    @property
    def is_ended(self) -> bool:
        """Whether all of its results are here, or were."""
        return None not in self.results


class MapRun:
    """One call of `map`: a Source for the engine, and the iterator over its results."""

    uses_client = True

    def __init__(
        self,
        client: Client,
        feed: Feed,
        function: Callable[..., Any],
        name: str,
        inputs: Iterator[tuple[Any, ...]],
        *,
        owner: object,
        timeout_s: float | None,
        chunk: int,
        calls_max: int,
        is_ordered: bool,
    ) -> None:
        """`owner` is kept as long as its calls may come: when it is forgotten, so is its feed."""
        self.pending: deque[Item] = deque()
        self._owner: object = owner
        self._client = client
        self._feed = feed
        self._name = name
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._tasks_max = max(1, calls_max // chunk)
        self._is_ordered = is_ordered
        body = calls.pack(function)
        if len(body) <= calls.SHARED_BYTES_MAX:
            self._is_single = chunk == 1
            self._params = calls.params("args" if chunk == 1 else "chunk", calls.function_text(body))
            bodies = map(calls.pack_args, inputs) if chunk == 1 else _chunks(inputs, chunk)
        else:
            self._is_single = False
            self._params = calls.params("whole", "")
            bodies = (calls.pack(("chunk", body, part)) for part in _growing_chunks(inputs, chunk))
        self._items = map(self._sent, bodies)
        self._unread: list[MapBatch] = []
        """Sealed, and not all of them taken."""
        self._ready: deque[MapBatch] = deque()
        """Ordered: sealed, and none of them taken."""
        self._finished: deque[tuple[MapBatch, int]] = deque()
        """Not ordered: what has come, in that order."""
        self._news = threading.Condition()
        self._held = self._held_bytes = 0
        """Tasks read and not taken, and their items' bytes."""
        self._is_exhausted = self._is_left = False
        self._input_fault: BaseException | None = None
        self._fault: BaseException | None = None

    # ---- the engine's side ----

    def seal(self) -> list[Batch]:
        """See Source."""
        items: list[Item] = []
        size = 0
        most = min(BATCH_CALLS_MAX, max(1, self._tasks_max // PARTS))
        while len(items) < most and size < BATCH_ITEMS_BYTES:
            try:
                items.append(self.pending.popleft())
            except IndexError:
                break
            size += item_cost(items[-1])
        if not items:
            return []
        batch = MapBatch(self, self._name, self._params, items)
        with self._news:
            self._unread = [other for other in self._unread if not other.is_ended]
            self._unread.append(batch)
            self._ready.append(batch)
            if self._is_left:
                batch.cancel()
            self._news.notify_all()
        return [batch]

    def reject(self, error: BaseException | None) -> None:
        """See Source."""
        self.pending.clear()
        with self._news:
            self._fault = self._fault or error or CancelledError()
            self._news.notify_all()

    def told(self, batch: MapBatch, indexes: Sequence[int]) -> None:
        """Results are in their places."""
        if not self._is_ordered:
            self._finished.extend([(batch, index) for index in indexes])
        with self._news:
            self._news.notify_all()

    # ---- the iterating thread's side ----

    def start(self) -> Iterator[Any]:
        """Send the first calls, and give the iterator over the results; leaving it ends everything."""
        self._feed.add(self)
        try:
            self._fill()
        except BaseException:  # Ctrl-C while the input was read: nobody will have the results
            self._leave()
            raise
        results = self._results()
        # A generator that was never asked for anything does not even run its `finally`.
        weakref.finalize(results, self._leave).atexit = False
        return results

    def _results(self) -> Generator[Any, None, None]:
        is_single, unpack = self._is_single, calls.unpack
        try:
            for batch, index in self._in_order() if self._is_ordered else self._as_completed():
                result, batch.results[index] = batch.results[index], _TAKEN
                if type(result) is not bytes:
                    result = self._fetched(batch, index, result)
                if is_single:
                    yield unpack(result)
                else:
                    yield from unpack(result)
            if self._input_fault is not None:
                raise self._input_fault
        finally:
            self._leave()

    def _in_order(self) -> Iterator[tuple[MapBatch, int]]:
        while self._held:
            self._await(lambda: self._ready)
            batch = self._ready.popleft()
            results = batch.results
            for index in range(batch.size):
                if results[index] is None:
                    self._await(lambda: results[index] is not None)  # noqa: B023 - it is called at once
                yield batch, index
            self._held -= batch.size
            self._held_bytes -= batch.bytes
            self._fill()

    def _as_completed(self) -> Iterator[tuple[MapBatch, int]]:
        part = max(1, self._tasks_max // PARTS)
        while self._held:
            self._await(lambda: self._finished)
            batch, index = self._finished.popleft()
            yield batch, index
            self._held -= 1
            self._held_bytes -= batch.share()
            if self._tasks_max - self._held >= part:
                self._fill()

    def _await(self, condition: Callable[[], Any]) -> None:
        with self._news:
            while not condition():
                if self._fault is not None:
                    raise self._fault
                left_s = None if self._deadline is None else self._deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise TimeoutError
                self._news.wait(left_s)

    def _fill(self) -> None:
        """Read ahead as far as is allowed, and have it sent."""
        room = self._tasks_max - self._held
        if self._is_exhausted or room <= 0 or self._held_bytes >= BUFFER_BYTES:
            return
        if self._feed.is_closing:
            self._end_input()
            return
        feed, add, read, size = self._feed, self.pending.append, 0, self._held_bytes
        try:
            for item in islice(self._items, room):
                add(item)
                read += 1
                size += item_cost(item)
                if feed.attention:
                    feed.wake()
                if size >= BUFFER_BYTES:
                    break
            else:
                self._is_exhausted = read < room
        except Exception as error:  # noqa: BLE001 - the input's own; the results of what was read before it come first
            self._is_exhausted, self._input_fault = True, error
        self._held += read
        self._held_bytes = size

    def _end_input(self) -> None:
        """The executor takes nothing more: good if there is nothing more."""
        self._is_exhausted = True
        try:
            if next(self._items, None) is not None:
                raise RuntimeError(
                    "the executor was shut down before its map had read all of its input; map reads as its results are "
                    "taken: take them before that, inside the with block"
                )
        except Exception as error:  # noqa: BLE001 - as above
            self._input_fault = error

    def _sent(self, item: bytes) -> Item:
        return item if len(item) <= INLINE_BYTES_MAX else self._client.upload(io.BytesIO(item))

    def _fetched(self, batch: MapBatch, index: int, result: Any) -> bytes:
        """A result that is no bytes yet."""
        if isinstance(result, BaseException):
            raise result
        file = io.BytesIO()
        self._client.download(task_text(batch.job, index), result, file)
        return file.getvalue()

    def _leave(self) -> None:
        """Nobody will take any more: what is not finished is of no use."""
        self._is_exhausted = True
        self._owner = None
        self._feed.remove(self)
        self.pending.clear()
        with self._news:
            self._is_left = True
            for batch in self._unread:
                if not batch.is_ended:
                    batch.cancel()
            self._unread = []


def _chunks(inputs: Iterator[tuple[Any, ...]], size: int) -> Iterator[bytes]:
    while chunk := list(islice(inputs, size)):
        yield calls.pack(chunk)


def _growing_chunks(inputs: Iterator[tuple[Any, ...]], size: int) -> Iterator[bytes]:
    """For tasks that bring a large function each: few calls stay spread over the workers, many share it."""
    made = 0
    while chunk := list(islice(inputs, max(size, min(LARGE_CHUNK_MAX, 1 + made // GROWTH)))):
        yield calls.pack(chunk)
        made += 1
