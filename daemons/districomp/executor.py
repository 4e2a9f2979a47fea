"""`districomp.Executor`: a `concurrent.futures.Executor` whose calls run on the cluster's workers.

Owns futures and how calls become jobs; `map` is `executor_map.py`'s, the connection `executor_engine.py`'s, pickle
`executor_calls.py`'s. Never imports asyncio, which can wrap its futures: `asyncio.wrap_future(executor.submit(...))`.
"""

import atexit
import contextlib
import io
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Final, NamedTuple, TypeVar

from districomp import executor_calls as calls
from districomp.client import Client
from districomp.client_results import TaskRecord
from districomp.executor_batch import BATCH_CALLS_MAX, BATCH_ITEMS_BYTES, Batch, item_cost
from districomp.executor_engine import Feed
from districomp.executor_map import BUFFER_CALLS, MapRun
from districomp.model import CANCELLED, INLINE_BYTES_MAX, Blob, Item, Payload, task_text

T = TypeVar("T")

WITH_SHARED_BYTES_MAX: Final = INLINE_BYTES_MAX - 1024
"""Larger arguments are uploaded together with their function."""
SHARED_MIN: Final = 8
"""If there are several functions, each with fewer calls than this is brought along by them: a job costs more than that."""


class CallFuture(futures.Future[T]):
    """The future of a call. It is pending until the call has ended: who runs it when is the cluster's business.

    `cancel` also ends a call that is running already, by TERM and then KILL to its process.
    """

    _call: "tuple[Batch, int] | None" = None

    def cancel(self) -> bool:
        """Cancel the call; False if it has ended already."""
        if not super().cancel():
            return False
        mine = object()
        if self.__dict__.setdefault("_teller", mine) is mine:
            # Once, whoever was the first: nobody will run it, so those who wait are to be told now.
            self.set_running_or_notify_cancel()
        call = self._call
        if call is not None:
            call[0].cancel([call[1]])
        return True


class _Call(NamedTuple):
    """A call that was not sent yet. `function` None: the item is whole, as a large one always is."""

    future: "CallFuture[Any]"
    function: Callable[..., Any] | None
    form: str
    item: bytes | Blob


class FutureBatch(Batch):
    """A job whose calls have futures."""

    __slots__ = ("_client", "_futures")

    def __init__(
        self, name: str, params: dict[str, str], items: list[Item], given: list[CallFuture[Any]], client: Client
    ) -> None:
        super().__init__(name, params, items)
        self._client = client
        self._futures: list[CallFuture[Any] | None] = list(given)
        for index, future in enumerate(given):
            future._call = self, index
            if future.cancelled():
                self.cancel([index])

    def done(self, indexes: list[int], results: Sequence[Payload | None]) -> None:
        """See Batch."""
        for index, body in zip(indexes, results, strict=True):
            future, self._futures[index] = self._futures[index], None
            if future is None:
                continue
            if isinstance(body, Blob):
                self._fetch(future, index, body)
            else:
                _resolve(future, body or b"")

    def failed(self, index: int, record: TaskRecord) -> None:
        """See Batch."""
        future, self._futures[index] = self._futures[index], None
        if future is not None:
            _end(future, None if record.state == CANCELLED else calls.failure(record))

    def rest(self, error: BaseException | None) -> None:
        """See Batch."""
        for future in self._futures:
            if future is not None:
                _end(future, error)
        self._futures = []

    def _fetch(self, future: CallFuture[Any], index: int, blob: Blob) -> None:
        def download() -> None:
            file = io.BytesIO()
            try:
                self._client.download(task_text(self.job, index), blob, file)
            except Exception as error:  # noqa: BLE001 - whoever waits for the future has to hear of it
                _end(future, error)
            else:
                _resolve(future, file.getvalue())

        assert self.engine is not None
        self.engine.fetch(download)


def _resolve(future: CallFuture[Any], body: bytes) -> None:
    try:
        value = calls.unpack(body)
    except BaseException as error:  # noqa: BLE001 - to unpickle is to run what somebody wrote
        _end(future, error)
    else:
        _tell(future.set_result, value)


def _end(future: CallFuture[Any], error: BaseException | None) -> None:
    """End a future without a result; None: cancelled."""
    if error is None:
        future._call = None  # there is nothing left to be cancelled
        _tell(future.cancel)
    else:
        _tell(future.set_exception, error)


def _tell(end: Callable[..., Any], *outcome: Any) -> None:
    """End a future, unless it was cancelled meanwhile. Others hear of their ends whatever its callbacks do."""
    try:
        end(*outcome)
    except futures.InvalidStateError:
        pass
    except BaseException:
        # What is no Exception gets past `Future`, which logs the others so.
        logging.getLogger("concurrent.futures").exception("a callback of a call's future raised")


class Submitted:
    """The calls that were submitted one by one, as a Source."""

    uses_client = False

    def __init__(self, client: Client) -> None:
        self.pending: deque[_Call] = deque()
        self._client = client

    def seal(self) -> list[Batch]:
        """See Source: a job for each function that is called often, and as few as can be for all the others."""
        groups, whole = self._gathered()
        batches: list[Batch] = []
        for body, group in groups:
            is_often = len(group) >= SHARED_MIN or len(groups) == 1
            if is_often and len(body) <= calls.SHARED_BYTES_MAX:
                batches.append(self._batch(group, group[0].form, calls.function_text(body), name_of(group[0].function)))
            else:
                whole += self._made_whole(group, body)
        return batches + [self._batch(part, "whole", "", "") for part in _fitting(whole)]

    def reject(self, error: BaseException | None) -> None:
        """See Source."""
        while self.pending:
            with contextlib.suppress(IndexError):
                _end(self.pending.popleft().future, error)

    def _gathered(self) -> tuple[list[tuple[bytes, list[_Call]]], list[_Call]]:
        """The next calls by their function, pickled, which together fit into a message; and those that are whole already."""
        groups: dict[object, tuple[bytes, list[_Call]]] = {}
        whole: list[_Call] = []
        size = count = 0
        while count < BATCH_CALLS_MAX and size < BATCH_ITEMS_BYTES // 2:
            try:
                call = self.pending.popleft()
            except IndexError:
                break
            if call.future.cancelled():
                continue
            count += 1
            size += item_cost(call.item)
            if call.function is None:
                whole.append(call)
                continue
            key = calls.key_of(call.function), call.form
            if key not in groups:
                try:
                    body = calls.pack(call.function)
                except Exception as error:  # noqa: BLE001 - whatever pickling it raises is the answer
                    _end(call.future, error)
                    continue
                size += len(body) if len(body) <= calls.SHARED_BYTES_MAX else 0
                groups[key] = body, []
            groups[key][1].append(call)
        return list(groups.values()), whole

    def _batch(self, group: list[_Call], form: str, function: str, name: str) -> FutureBatch:
        items: list[Item] = [call.item for call in group]
        return FutureBatch(name, calls.params(form, function), items, [call.future for call in group], self._client)

    def _made_whole(self, group: list[_Call], body: bytes) -> list[_Call]:
        made = []
        for call in group:
            try:
                item = whole_item(self._client, body, call.form, call.item)
            except Exception as error:  # noqa: BLE001 - an upload that fails is this call's end alone
                _end(call.future, error)
            else:
                made.append(call._replace(function=None, item=item))
        return made


def _fitting(group: list[_Call]) -> Iterator[list[_Call]]:
    """Parts of these calls, each of which fits into a message."""
    part: list[_Call] = []
    size = 0
    for call in group:
        size += item_cost(call.item)
        if part and size > BATCH_ITEMS_BYTES:
            yield part
            part, size = [], item_cost(call.item)
        part.append(call)
    if part:
        yield part


def whole_item(client: Client, function: bytes, form: str, item: bytes | Blob) -> bytes | Blob:
    """An item that brings its function along."""
    assert isinstance(item, bytes), "what was uploaded is whole already"
    return sent(client, calls.pack((form, function, item)))


def sent(client: Client, item: bytes) -> bytes | Blob:
    """An item as a submission carries it: uploaded if it is large."""
    return item if len(item) <= INLINE_BYTES_MAX else client.upload(io.BytesIO(item))


def name_of(function: Any) -> str:
    """What a job of these calls is called, for people."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name)[:100]


class Executor(futures.Executor):
    """Runs calls on the cluster. `client` is one to use (it is left open), or where the coordinator is, as `Client` has it.

    Connects at once: UnreachableError, TrustError and NotAllowedError as `Client` has them. Safe to use from several threads.
    """

    def __init__(self, client: Client | str | None = None, token_file: str | os.PathLike[str] | None = None) -> None:
        if isinstance(client, Client):
            self._client = client
            self._feed = Feed(client)
        else:
            self._client = Client(client, token_file).__enter__()
            self._feed = Feed(self._client, at_end=self._client.close)
        self._submitted = Submitted(self._client)
        self._feed.add(self._submitted)
        _feeds.add(self._feed)
        # An executor that was forgotten instead of shut down: its thread ends when its calls have.
        weakref.finalize(self, self._feed.close, wait=False).atexit = False

    @property
    def client(self) -> Client:
        """The client by which it submits."""
        return self._client

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Have `fn(*args, **kwargs)` called on a worker.

        Arguments are pickled now, a function when its job is sent, moments later. The future raises what the call raises, with
        the worker's traceback as `__cause__`; CallFailedError if it ended otherwise; CancelledError.
        """
        self._check_open()
        future: CallFuture[T] = CallFuture()
        try:
            form, item = ("call", calls.pack((args, kwargs))) if kwargs else ("args", calls.pack_args(args))
            if len(item) <= WITH_SHARED_BYTES_MAX and calls.is_shareable(fn):
                call = _Call(future, fn, form, item)
            else:
                call = _Call(future, None, "", whole_item(self._client, calls.pack(fn), form, item))
        except Exception as error:  # noqa: BLE001 - as in concurrent.futures, what cannot be sent is the future's error
            future.set_exception(error)
            return future
        self._submitted.pending.append(call)
        if self._feed.attention:
            self._feed.wake()
        return future

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]:
        """Results of `fn` for each of the zipped inputs, in their order, or with `ordered=False` as they come.

        Lazy: reads at most `buffersize` calls (default 10,000) ahead of what was taken from it, so that the input may be endless.
        A chunk of `chunksize` calls is one task, and raises as one. TimeoutError `timeout` seconds after the call of `map`.
        Leaving the iterator cancels what it has not given.
        """
        self._check_open()
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be >= 1.")
        run = MapRun(
            self._client, self._feed, fn, name_of(fn), zip(*iterables, strict=False),
            owner=self, timeout_s=timeout, chunk=chunksize, calls_max=buffersize or max(BUFFER_CALLS, 2 * chunksize), is_ordered=ordered,
        )  # fmt: skip
        return run.start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when all have ended. `cancel_futures` cancels all that have not, running or not."""
        self._feed.close(wait=wait, cancel=cancel_futures)

    def _check_open(self) -> None:
        if self._feed.is_closing:
            raise RuntimeError("cannot submit calls after shutdown")
        if self._feed.fault is not None:
            raise futures.BrokenExecutor(f"the executor has lost its cluster: {self._feed.fault}") from self._feed.fault


_feeds: weakref.WeakSet[Feed] = weakref.WeakSet()


def _finish() -> None:
    """At the program's end: as with any executor, what was submitted is waited for."""
    for feed in list(_feeds):
        feed.close(wait=True)


def _abandon() -> None:
    """In the child of a fork, which would wait for ever for a thread that it does not have."""
    for feed in list(_feeds):
        feed.abandon()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
