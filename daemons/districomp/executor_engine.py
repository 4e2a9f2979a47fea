"""The thread behind an `Executor`: one connection by which calls are submitted in jobs, and every result comes back.

A call costs no message: what has gathered while submissions were under way goes out as one job, and all jobs of a
connection are followed by it. Owns jobs, cancelling, and beginning again where a lost connection broke off. Must not
know what a call is: a `Source` has them, and a `Batch` is told what became of them.
"""

import contextlib
import selectors
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import msgspec

from districomp.client import Client
from districomp.client_link import Link, refusal
from districomp.client_results import TaskRecord
from districomp.client_socket import LinkLostError
from districomp.errors import RemoteProtocolError
from districomp.executor_calls import DEFINITION, explained
from districomp.messages import (
    Accepted,
    AnyMessage,
    Cancel,
    Message,
    Refused,
    Reply,
    ResultRows,
    Results,
    Submit,
)
from districomp.model import DONE, QUEUED, Item, Payload
from districomp.wire import UNREADABLE

SUBMITS_AHEAD: Final = 2
"""Submissions that may be under way; what comes meanwhile gathers for the next."""
OPEN_MAX: Final = 900
"""Jobs followed by one connection, below what a coordinator allows (1,024); then a second connection takes over."""
BATCH_CALLS_MAX: Final = 2048
BATCH_ITEMS_BYTES: Final = 256 * 1024
"""A job's items fit into one message, with its function."""
RETRY_S: Final = 1.0
"""How soon results are asked for again that the coordinator could not read."""
IDLE_S: Final = 30.0
"""The connection is looked after at least so often: its certificate may be due."""


ITEM_OVERHEAD_BYTES: Final = 64
"""What an item costs beside its bytes, generously."""


def item_cost(item: Item) -> int:
    """About how many bytes an item takes in a message and in memory."""
    return ITEM_OVERHEAD_BYTES + len(item) if isinstance(item, bytes) else 2 * ITEM_OVERHEAD_BYTES


class Row(msgspec.Struct, array_like=True, gc=False):
    """An `outcome.Outcome` of which only that is decoded what a call's end needs."""

    job: int
    serial: int
    worker: msgspec.Raw
    indexes: list[int]
    states: list[int] = []
    attempts: msgspec.Raw = msgspec.Raw()
    reasons: list[str] = []
    exit_codes: list[int | None] = []
    signals: list[int | None] = []
    started: msgspec.Raw = msgspec.Raw()
    ended: msgspec.Raw = msgspec.Raw()
    cpu_s: msgspec.Raw = msgspec.Raw()
    memory_bytes: msgspec.Raw = msgspec.Raw()
    stderr: list[bytes] = []
    results: list[Payload | None] = []
    sweep: int | None = None


_rows: msgspec.msgpack.Decoder[Row] = msgspec.msgpack.Decoder(Row)


class Batch(ABC):
    """One job of calls. Told by the engine's thread what became of them; each call hears of one end at most."""

    __slots__ = ("after", "cancels", "engine", "items", "job", "name", "params", "request_id", "size")

    def __init__(self, name: str, params: dict[str, str], items: list[Item]) -> None:
        self.name = name
        self.params = params
        self.items = items
        """Until the job is accepted."""
        self.size = len(items)
        self.request_id = str(uuid.uuid4())
        self.job = 0
        self.after = 0
        self.cancels: dict[int, None] = {}
        self.engine: Engine | None = None

    def cancel(self, indexes: Iterable[int] | None = None) -> None:
        """Have these calls cancelled, wherever they are by now; None: all. For any thread."""
        self.cancels.update(dict.fromkeys(range(self.size) if indexes is None else indexes))
        # Noted before anybody looks: without an engine yet, it is found when the job is accepted.
        if self.engine is not None:
            self.engine.cancel(self)

    @abstractmethod
    def done(self, indexes: list[int], results: Sequence[Payload | None]) -> None:
        """These calls returned."""

    @abstractmethod
    def failed(self, index: int, record: TaskRecord) -> None:
        """This call has no result."""

    @abstractmethod
    def rest(self, error: BaseException | None) -> None:
        """All others end with this error; None: they were cancelled."""

    def take(self, row: Row) -> None:
        """A row of the job's. RemoteProtocolError if it makes no sense."""
        if row.sweep is not None:
            return  # nothing is known of these calls but that they will not run: see `rest`
        if row.indexes and not (min(row.indexes) >= 0 and max(row.indexes) < self.size):
            raise RemoteProtocolError(f"the coordinator sent a result of a task that job {self.job} does not have")
        try:
            if not row.states:
                self.done(row.indexes, row.results or [None] * len(row.indexes))
            else:
                self._take_each(row)
        except IndexError as error:
            raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error

    def _take_each(self, row: Row) -> None:
        good = [place for place, state in enumerate(row.states) if state == DONE]
        if good:
            self.done([row.indexes[k] for k in good], [row.results[k] if row.results else None for k in good])
        for place, state in enumerate(row.states):
            if state not in (DONE, QUEUED):
                record = TaskRecord(self.job, row.indexes[place], state)
                record.reason = row.reasons[place] if row.reasons else ""
                record.exit_code = row.exit_codes[place] if row.exit_codes else None
                record.signal = row.signals[place] if row.signals else None
                record.stderr = row.stderr[place] if row.stderr else b""
                self.failed(record.index, record)


class Source(Protocol):
    """Where calls come from."""

    pending: deque[Any]

    def seal(self) -> list[Batch]:
        """Some of what is pending, as jobs; what cannot be sent has been told so. For the engine's thread."""

    def reject(self, error: BaseException | None) -> None:
        """End all that is pending with this error; None: it was cancelled."""


class Feed:
    """What has been submitted and not sent yet, and the engine that sends it. Safe to use from several threads.

    Whoever adds to a source's `pending` looks at `attention` afterwards, and calls `wake` if it is set.
    """

    def __init__(self, client: Client, at_end: Callable[[], None] | None = None) -> None:
        """`at_end` is called once nobody will use the client any more."""
        self.attention = True
        self.is_closing = False
        self.fault: BaseException | None = None
        """Why nothing can be sent any more."""
        self._client = client
        self._at_end = at_end
        self._lock = threading.Lock()
        self._sources: dict[Source, None] = {}
        self._engines: list[Engine] = []
        self._sender: Engine | None = None

    def add(self, source: Source) -> None:
        """Calls will come from there."""
        with self._lock:
            self._sources[source] = None

    def remove(self, source: Source) -> None:
        """No more will."""
        with self._lock:
            self._sources.pop(source, None)

    def wake(self) -> None:
        """There is something new; start a thread for it if there is none."""
        with self._lock:
            if self._sender is None:
                if self.fault is not None or self.is_closing:
                    self._reject(self.fault or RuntimeError("cannot submit calls after shutdown"))
                    return
                self._sender = Engine(self._client, self)
                self._engines.append(self._sender)
                self._sender.start()
            sender = self._sender
        sender.wake()

    def seal(self) -> list[Batch]:
        """The next jobs, of each source in its turn; none if nothing is pending."""
        with self._lock:
            for source in list(self._sources):
                if source.pending:
                    del self._sources[source]
                    self._sources[source] = None
                    return source.seal()
        return []

    @property
    def is_pending(self) -> bool:
        """Whether anything waits to be sent."""
        with self._lock:
            return any(source.pending for source in self._sources)

    def retire(self, engine: "Engine", fault: BaseException | None = None) -> None:
        """An engine takes nothing new any more; with a fault, nobody does."""
        with self._lock:
            if self._sender is engine:
                self._sender = None
                self.attention = True
            if fault is not None:
                self.fault = fault
                self._reject(fault)
        if fault is None and self.is_pending:
            self.wake()

    def ended(self, engine: "Engine") -> None:
        """An engine's thread ends."""
        with self._lock:
            self._engines.remove(engine)
            at_end = None
            if self.is_closing and not self._engines:
                at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()

    def cancel(self) -> None:
        """Have everything cancelled that was submitted."""
        with self._lock:
            self._reject(None)
            engines = list(self._engines)
        for engine in engines:
            engine.cancel(None)

    def close(self, wait: bool) -> None:
        """Take nothing more, send what is pending, then end; with `wait`, return when all calls have ended."""
        with self._lock:
            self.is_closing = True
            engines = list(self._engines)
            at_end = None
            if not engines:
                at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()
        for engine in engines:
            engine.wake()
        if wait:
            for engine in engines:
                if engine is not threading.current_thread():
                    engine.join()

    def _reject(self, error: BaseException | None) -> None:
        for source in self._sources:
            source.reject(error)


class Engine(threading.Thread):
    """One connection and the jobs that it has submitted."""

    def __init__(self, client: Client, feed: Feed) -> None:
        super().__init__(name="districomp-executor", daemon=True)
        self._client = client
        self._feed = feed
        self._orders: deque[Batch | None] = deque()
        self._ready: deque[Batch] = deque()
        self._unaccepted: dict[str, Batch] = {}
        self._open: dict[int, Batch] = {}
        self._requests: dict[int, tuple[Batch, type[Message]]] = {}
        self._later: deque[tuple[float, Batch]] = deque()
        self._losses = 0
        self._is_retired = False
        self._fetcher: ThreadPoolExecutor | None = None
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)

    # ---- any thread ----

    def wake(self) -> None:
        """Look at what is new."""
        with contextlib.suppress(OSError):  # full: it is waking up already; closed: it has ended
            self._ringer.send(b"\0")

    def cancel(self, batch: Batch | None) -> None:
        """A job of ours has more `cancels`; None: all are to be cancelled."""
        self._orders.append(batch)
        self.wake()

    def fetch(self, work: Callable[[], None]) -> None:
        """Do this in a thread that may wait for the data port; the engine does not end before it is done."""
        if self._fetcher is None:
            self._fetcher = ThreadPoolExecutor(1, "districomp-download")
        self._fetcher.submit(work)

    # ---- its own ----

    def run(self) -> None:
        """Serve until there is nothing left to do, or no way to do it."""
        fault: BaseException | None = None
        try:
            while not self._is_finished():
                if not (self._has_jobs or self._feed.is_pending):
                    # A connection is made again for those who wait; it may be for ever, and nobody does.
                    self._wait_without()
                    continue
                link = self._client.take_link(self._losses)
                try:
                    self._serve(link)
                except LinkLostError:
                    self._losses += 1
                finally:
                    link.close()
        except Exception as error:  # noqa: BLE001 - a connection's end, which every call that waits must hear of
            fault = error
        self._feed.retire(self, fault)
        for batch in [*self._ready, *self._unaccepted.values(), *self._open.values()]:
            batch.rest(fault)
        if self._fetcher is not None:
            self._fetcher.shutdown()
        self._bell.close()
        self._ringer.close()
        self._feed.ended(self)

    @property
    def _has_jobs(self) -> bool:
        return bool(self._open or self._unaccepted or self._ready)

    def _is_finished(self) -> bool:
        if self._has_jobs:
            return False
        return self._is_retired or (self._feed.is_closing and not self._feed.is_pending)

    def _serve(self, link: Link) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(link.fileno(), selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            out = self._begin(link)
            while True:
                self._add_cancels(link, out)
                self._add_due(link, out)
                self._add_submissions(link, out)
                if out:
                    link.send_all(out)
                    out.clear()
                if self._is_finished():
                    return
                self._wait(selector)
                for message in link.arrived():
                    self._losses = 0
                    self._on_message(link, message, out)

    def _begin(self, link: Link) -> list[Message]:
        """On a new connection: everything that is under way, again. A job is known by its request id."""
        self._requests.clear()
        self._later.clear()
        out: list[Message] = [self._submission(link, batch) for batch in self._unaccepted.values()]
        for batch in self._open.values():
            out.append(self._question(link, batch))
            if batch.cancels:
                out.append(self._cancellation(link, batch))
        return out

    def _wait_without(self) -> None:
        """Wait for something to do, without a connection."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            self._wait(selector)

    def _wait(self, selector: selectors.BaseSelector) -> None:
        timeout_s = IDLE_S
        if self._later:
            timeout_s = max(0.0, self._later[0][0] - time.monotonic())
        can_send = not self._is_retired and len(self._unaccepted) < SUBMITS_AHEAD
        if can_send:
            self._feed.attention = True
            if self._feed.is_pending:
                timeout_s = 0.0
        selector.select(timeout_s)
        if can_send:
            self._feed.attention = False
        with contextlib.suppress(BlockingIOError):
            while len(self._bell.recv(4096)) == 4096:
                pass

    # ---- what is sent ----

    def _add_submissions(self, link: Link, out: list[Message]) -> None:
        while len(self._unaccepted) < SUBMITS_AHEAD and not self._is_retired:
            if not self._ready:
                if len(self._open) + len(self._unaccepted) >= OPEN_MAX:
                    self._is_retired = True
                    self._feed.retire(self)
                    return
                self._ready.extend(self._feed.seal())
                if not self._ready:
                    if not self._feed.is_pending:
                        return
                    continue
            batch = self._ready.popleft()
            batch.engine = self
            self._unaccepted[batch.request_id] = batch
            out.append(self._submission(link, batch))

    def _add_cancels(self, link: Link, out: list[Message]) -> None:
        touched: dict[Batch, None] = {}
        while self._orders:
            order = self._orders.popleft()
            for batch in [order] if order is not None else [*self._unaccepted.values(), *self._open.values()]:
                if order is None:
                    batch.cancels.update(dict.fromkeys(range(batch.size)))
                touched[batch] = None
        out += [self._cancellation(link, batch) for batch in touched if batch.job in self._open]

    def _add_due(self, link: Link, out: list[Message]) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            out.append(self._question(link, self._later.popleft()[1]))

    def _submission(self, link: Link, batch: Batch) -> Submit:
        request = self._number(link, batch, Submit)
        return Submit(
            request, batch.request_id, DEFINITION, batch.params, batch.name, items=batch.items, user=link.user
        )

    def _question(self, link: Link, batch: Batch) -> Results:
        return Results(self._number(link, batch, Results), batch.job, batch.after, wait=True, follow=True)

    def _cancellation(self, link: Link, batch: Batch) -> Cancel:
        indexes = [] if len(batch.cancels) == batch.size else list(batch.cancels)
        return Cancel(self._number(link, batch, Cancel), batch.job, indexes)

    def _number(self, link: Link, batch: Batch, kind: type[Message]) -> int:
        request = link.next_request()
        self._requests[request] = batch, kind
        return request

    # ---- what comes ----

    def _on_message(self, link: Link, message: AnyMessage, out: list[Message]) -> None:
        request = getattr(message, "request", -1)
        batch, kind = self._requests.get(request, (None, None))
        if batch is None:
            return
        if not isinstance(message, ResultRows) or message.ended:
            del self._requests[request]
        if isinstance(message, ResultRows):
            self._on_rows(batch, message)
        elif isinstance(message, Accepted):
            batch.job, batch.items = message.job, []
            del self._unaccepted[batch.request_id]
            self._open[batch.job] = batch
            out.append(self._question(link, batch))
            if batch.cancels:
                out.append(self._cancellation(link, batch))
        elif isinstance(message, Refused):
            if kind is not Cancel:  # else it has ended, or goes on: its rows say which
                self._on_refused(batch, message)
        elif not isinstance(message, Reply):
            raise RemoteProtocolError(f"the coordinator answered with {type(message).__name__}")

    def _on_rows(self, batch: Batch, message: ResultRows) -> None:
        batch.after = message.after
        for body in message.rows:
            try:
                row = _rows.decode(body)
            except UNREADABLE as error:
                raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error
            batch.take(row)
        if message.ended:
            self._open.pop(batch.job, None)
            batch.rest(None)

    def _on_refused(self, batch: Batch, message: Refused) -> None:
        if batch.request_id in self._unaccepted:
            del self._unaccepted[batch.request_id]
            batch.rest(explained(refusal(message)))
        elif message.code == "degraded" and batch.job in self._open:
            self._later.append((time.monotonic() + RETRY_S, batch))
        elif self._open.pop(batch.job, None) is not None:
            batch.rest(refusal(message))
