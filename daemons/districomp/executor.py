"""`districomp.Executor`: a `concurrent.futures.Executor` whose calls run on the cluster's workers.

Owns futures and how calls become jobs; `map` is `executor_map.py`'s, the connection `executor_engine.py`'s, pickle
`executor_calls.py`'s. Never imports asyncio, which can wrap its futures: `asyncio.wrap_future(executor.submit(...))`.
"""

import atexit
import contextlib
import io
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Final, NamedTuple, TypeVar

from districomp import executor_calls as calls
from districomp.client import Client
from districomp.client_results import TaskRecord
from districomp.executor_engine import BATCH_CALLS_MAX, BATCH_ITEMS_BYTES, Batch, Feed, item_cost
from districomp.executor_map import BUFFER_CALLS, MapRun
from districomp.model import CANCELLED, INLINE_BYTES_MAX, Blob, Item, Payload, task_text

T = TypeVar("T")

WITH_SHARED_BYTES_MAX: Final = INLINE_BYTES_MAX - 1024
"""Larger arguments are uploaded together with their function."""
SHARED_MIN: Final = 2
"""Fewer calls of a function than this bring it along each; more have it sent once, as the job's."""


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
        with contextlib.suppress(futures.InvalidStateError):  # cancelled meanwhile
            future.set_result(value)


def _end(future: CallFuture[Any], error: BaseException | None) -> None:
    """End a future without a result; None: cancelled."""
    if error is None:
        future._call = None  # there is nothing left to be cancelled
        future.cancel()
        return
    with contextlib.suppress(futures.InvalidStateError):
        future.set_exception(error)


class Submitted:
    """The calls that were submitted one by one, as a Source."""

    def __init__(self, client: Client) -> None:
        self.pending: deque[_Call] = deque()
        self._client = client

    def seal(self) -> list[Batch]:
        """See Source: a job for each function that is called more than once, and one for all the others."""
        groups: dict[object, list[_Call]] = {}
        size = count = 0
        while self.pending and count < BATCH_CALLS_MAX and size < BATCH_ITEMS_BYTES // 2:
            call = self.pending.popleft()
            if call.future.cancelled():
                continue
            count += 1
            size += item_cost(call.item)
            key = None if call.function is None else (calls.key_of(call.function), call.form)
            groups.setdefault(key, []).append(call)
        whole = groups.pop(None, [])
        batches: list[Batch] = []
        for group in groups.values():
            if len(groups) > 1 and len(group) < SHARED_MIN:
                whole += self._made_whole(group)
                continue
            body = self._packed(group)
            if body is not None and len(body) <= calls.SHARED_BYTES_MAX:
                batches.append(self._batch(group, group[0].form, calls.function_text(body), _name_of(group[0])))
            elif body is not None:
                whole += self._made_whole(group, body)
        if whole:
            batches.append(self._batch(whole, "whole", "", ""))
        return batches

    def reject(self, error: BaseException | None) -> None:
        """See Source."""
        while self.pending:
            with contextlib.suppress(IndexError):
                _end(self.pending.popleft().future, error)

    def _batch(self, group: list[_Call], form: str, function: str, name: str) -> FutureBatch:
        items: list[Item] = [call.item for call in group]
        return FutureBatch(name, calls.params(form, function), items, [call.future for call in group], self._client)

    def _packed(self, group: list[_Call]) -> bytes | None:
        """The function of these calls; None if it cannot be sent, which they have been told."""
        try:
            return calls.pack(group[0].function)
        except Exception as error:  # noqa: BLE001 - whatever pickling it raises is the answer
            for call in group:
                _end(call.future, error)
            return None

    def _made_whole(self, group: list[_Call], body: bytes | None = None) -> list[_Call]:
        body = self._packed(group) if body is None else body
        if body is None:
            return []
        made = []
        for call in group:
            try:
                item = whole_item(self._client, body, call.form, call.item)
            except Exception as error:  # noqa: BLE001 - an upload that fails is this call's end alone
                _end(call.future, error)
            else:
                made.append(call._replace(function=None, item=item))
        return made


def whole_item(client: Client, function: bytes, form: str, item: bytes | Blob) -> bytes | Blob:
    """An item that brings its function along."""
    assert isinstance(item, bytes), "what was uploaded is whole already"
    return sent(client, calls.pack((form, function, item)))


def sent(client: Client, item: bytes) -> bytes | Blob:
    """An item as a submission carries it: uploaded if it is large."""
    return item if len(item) <= INLINE_BYTES_MAX else client.upload(io.BytesIO(item))


def _name_of(call: _Call) -> str:
    return name_of(call.function)


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
        weakref.finalize(self, self._feed.close, False).atexit = False

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
            timeout_s=timeout, chunk=chunksize, calls_max=buffersize or max(BUFFER_CALLS, 2 * chunksize), is_ordered=ordered,
        )  # fmt: skip
        return run.start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when all have ended. `cancel_futures` cancels all that have not, running or not."""
        if cancel_futures:
            self._feed.cancel()
        self._feed.close(wait)

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


atexit.register(_finish)
