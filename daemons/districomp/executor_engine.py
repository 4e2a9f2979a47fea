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
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from districomp.client import Client
from districomp.client_link import Link, refusal
from districomp.client_socket import LinkLostError
from districomp.errors import DistricompError, RemoteProtocolError
from districomp.executor_batch import Batch, Source
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

SUBMITS_AHEAD: Final = 2
"""Submissions that may be under way; what comes meanwhile gathers for the next."""
OPEN_MAX: Final = 700
"""So many jobs are followed by one connection, and those of the last `seal`; then a second connection takes over. A coordinator
allows 1,024."""
RETRY_S: Final = 1.0
"""How soon results are asked for again that the coordinator could not read."""
IDLE_S: Final = 30.0
"""The connection is looked after at least so often: its certificate may be due."""


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
        # Taken again by who holds it: the garbage collector closes and removes in whatever thread it runs. Sources are called
        # without it: they pickle and end futures, and so run anybody's code.
        self._lock = threading.RLock()
        self._sources: dict[Source, None] = {}
        self._engines: list[Engine] = []
        self._sender: Engine | None = None
        self._is_over = False

    def add(self, source: Source) -> None:
        """Calls will come from there."""
        with self._lock:
            self._sources[source] = None

    def remove(self, source: Source) -> None:
        """No more will."""
        with self._lock:
            self._sources.pop(source, None)
        self._end_if_over()

    def wake(self) -> None:
        """There is something new; start a thread for it if there is none."""
        with self._lock:
            if self._sender is None and self.fault is None and not self._is_over:
                engine = Engine(self._client, self)
                engine.start()
                self._engines.append(engine)
                self._sender = engine
            sender = self._sender
        if sender is not None:
            sender.wake()
        else:
            self._reject(self.fault or RuntimeError("cannot submit calls after shutdown"))

    def seal(self) -> list[Batch]:
        """The next jobs, of each source in its turn; none if nothing is pending."""
        with self._lock:
            source = next((source for source in self._sources if source.pending), None)
            if source is None:
                return []
            del self._sources[source]
            self._sources[source] = None
        return source.seal()

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
        if fault is not None:
            self._reject(fault)
        elif self.is_pending:
            self.wake()

    def ended(self, engine: "Engine") -> None:
        """An engine's thread ends."""
        with self._lock:
            self._engines.remove(engine)
        self._end_if_over()

    def close(self, *, wait: bool, cancel: bool = False) -> None:
        """Take nothing more, send what is pending, then end; with `wait`, return when all calls have ended. Or `cancel` them all."""
        self.is_closing = True
        if cancel:
            self._reject(None)
        for engine in self._others():
            if cancel:
                engine.cancel(None)
            engine.wake()
        self._end_if_over()
        while wait and (engines := self._others()):
            engines[0].join()

    def abandon(self) -> None:
        """In the child of a fork: engines and their connections are the parent's."""
        self._lock = threading.RLock()
        self._engines, self._sender, self._at_end = [], None, None
        self.attention = True
        self.fault = DistricompError("it is of the process that this one was forked from; make another one here")

    def _others(self) -> "list[Engine]":
        """Engines that may be waited for: a call's end is told in an engine's own thread, and may be where we are."""
        with self._lock:
            return [engine for engine in self._engines if engine is not threading.current_thread()]

    def _end_if_over(self) -> None:
        with self._lock:
            if not self.is_closing or self._engines or any(source.uses_client for source in self._sources):
                return
            self._is_over = True
            at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()

    def _reject(self, error: BaseException | None) -> None:
        with self._lock:
            sources = list(self._sources)
        for source in sources:
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
        try:
            self._fetcher.submit(work)
        except RuntimeError:  # the program ends, and its pools take nothing more
            work()

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
        except BaseException as error:  # noqa: BLE001 - a connection's end, which every call that waits must hear of
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
            if order is not None:
                touched[order] = None
                continue
            while self._ready:
                self._ready.popleft().rest(None)
            for batch in [*self._unaccepted.values(), *self._open.values()]:
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
            batch.take(body)
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
