"""The web process' link to the coordinator: one connection to its Unix socket, kept up for ever.

Owns reconnection, questions and their answers, and that any number of page views costs the coordinator a
bounded few questions (answers are shared while under way and kept for a moment). Asks nothing unless somebody
asks it. Must not know HTTP or what a document means.
"""

import asyncio
import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from dcoord.web.trust import Trust
from districomp.errors import RefusedError, UnreachableError
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Goodbye,
    HelloWeb,
    Query,
    Refused,
    Reply,
    WebTrust,
    Welcome,
)
from districomp.stream import Connection

log = logging.getLogger(__name__)

ANSWER_S: Final = 5.0
"""The coordinator is taken as unreachable for a question that it does not answer in this time."""
SILENT_RETRY_S: Final = 1.0
"""After that one question tries a connected coordinator again; the others are refused at once meanwhile."""
AGE_S_MIN: Final = 0.25
AGE_S_MAX: Final = 10.0
AGE_PER_COST: Final = 20
"""An answer is kept for so many times what it took: pages never take more than a twentieth of the coordinator."""
KEPT_MAX: Final = 64
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
"""All kept answers together; the newest is kept whatever its size."""
UNDER_WAY_MAX: Final = 32
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
BACKOFF_S_FIRST: Final = 0.1
BACKOFF_S_MAX: Final = 2.0


class Question(NamedTuple):
    """What can be asked: a Query without its number."""

    noun: str
    job: int = 0
    task_index: int = 0
    state: str = ""
    name: str = ""
    user: str = ""


class Cluster(NamedTuple):
    """Who answers, from its Welcome."""

    id: str
    name: str
    epoch: int


class _Pending:
    """A question that the coordinator has not answered whole."""

    def __init__(self, answer: "asyncio.Future[list[bytes]]") -> None:
        self.answer = answer
        self.documents: list[bytes] = []
        self.size = 0


class CoordinatorLink:
    """Ask the coordinator, from the event loop. `run` keeps the connection up until it is cancelled."""

    def __init__(self, control_socket: Path, trust: Trust) -> None:
        self.cluster: Cluster | None = None
        """The last coordinator that welcomed us."""
        self.since = time.time()
        """Since when it is reachable, or not."""
        self._socket = control_socket
        self._trust = trust
        self._hello = HelloWeb(PROTOCOL_VERSION, os.getpid(), "", "")
        self._connection: Connection | None = None
        self._welcomed = False
        self._silent = False
        self._patience_until = 0.0
        self._gone = asyncio.Event()
        self._why = ""
        self._request = 0
        self._pending: dict[int, _Pending] = {}
        self._shared: dict[Question, asyncio.Task[list[bytes]]] = {}
        self._kept: OrderedDict[Question, tuple[float, list[bytes]]] = OrderedDict()
        self._kept_bytes = 0
        self._changes = 0

    @property
    def is_up(self) -> bool:
        """Whether the coordinator is there and answers."""
        return self._welcomed and not self._silent

    async def run(self, web_url: str, data_url: str) -> None:
        """Connect, say where this process serves, and again with full-jitter backoff whenever the connection ends."""
        self._hello = HelloWeb(PROTOCOL_VERSION, os.getpid(), web_url, data_url)
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_S_FIRST
        while True:
            self._gone.clear()
            was_welcomed = False
            try:
                await loop.create_unix_connection(lambda: Connection(self), str(self._socket))
                await self._gone.wait()
                was_welcomed, self._why = self._why == "", ""
            except OSError as error:
                log.debug("%s: %s", self._socket, error)
            backoff_s = BACKOFF_S_FIRST if was_welcomed else min(backoff_s * 2, BACKOFF_S_MAX)
            await asyncio.sleep(random.uniform(BACKOFF_S_FIRST / 2, backoff_s))

    async def ask(self, question: Question) -> list[bytes]:
        """The documents that answer a question (MessagePack), at most `AGE_S_MAX` old.

        Raises:
            UnreachableError: the coordinator is away or does not answer.
            RefusedError: it refused, for example `unknown_job`.
        """
        kept = self._kept.get(question)
        if kept is not None and kept[0] > time.monotonic() and self._welcomed:
            return kept[1]
        task = self._shared.get(question)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(question))
            self._shared[question] = task
            task.add_done_callback(lambda done: self._unshare(question, done))
        return await asyncio.shield(task)

    def forget(self) -> None:
        """Something was changed through this process: who asks from now on shall see it."""
        self._kept.clear()
        self._kept_bytes = 0
        self._shared.clear()
        self._changes += 1

    def _unshare(self, question: Question, done: "asyncio.Task[list[bytes]]") -> None:
        if self._shared.get(question) is done:
            del self._shared[question]

    async def _fetch(self, question: Question) -> list[bytes]:
        connection = self._connection
        if connection is None or not self._welcomed:
            raise UnreachableError(f"no coordinator answers at {self._socket}; start dcoord")
        began, changes = time.monotonic(), self._changes
        if self._silent and began < self._patience_until:
            raise UnreachableError("the coordinator is connected and does not answer; ask again later")
        self._patience_until = began + SILENT_RETRY_S
        if len(self._pending) >= UNDER_WAY_MAX:
            raise UnreachableError("too many questions wait for the coordinator; ask again in a moment")
        self._request += 1
        number = self._request
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._pending[number] = _Pending(future)
        connection.send(Query(number, *question))
        try:
            async with asyncio.timeout(ANSWER_S):
                documents = await future
        except TimeoutError:
            self._patience_until = time.monotonic() + SILENT_RETRY_S
            self._hear(False)
            raise UnreachableError(f"the coordinator did not answer within {ANSWER_S:g} s; ask again later") from None
        finally:
            self._pending.pop(number, None)
        self._hear(True)
        now = time.monotonic()
        if changes == self._changes:
            self._keep(question, now + min(max(AGE_S_MIN, AGE_PER_COST * (now - began)), AGE_S_MAX), documents)
        return documents

    def _keep(self, question: Question, until: float, documents: list[bytes]) -> None:
        self._kept_bytes += sum(map(len, documents)) - self._size_kept(question)
        self._kept[question] = (until, documents)
        self._kept.move_to_end(question)
        while len(self._kept) > KEPT_MAX or (self._kept_bytes > KEPT_BYTES_MAX and len(self._kept) > 1):
            oldest = next(iter(self._kept))
            self._kept_bytes -= self._size_kept(oldest)
            del self._kept[oldest]

    def _size_kept(self, question: Question) -> int:
        return sum(map(len, self._kept[question][1])) if question in self._kept else 0

    # ---- stream.Handler ----

    def opened(self, connection: Connection) -> None:
        """stream: connected."""
        self._connection = connection
        connection.send(self._hello)

    def received(self, connection: Connection, messages: Sequence[AnyMessage], at: float) -> None:
        """stream: messages."""
        for message in messages:
            match message:
                case Welcome():
                    self._welcome(message)
                case WebTrust():
                    self._trust.update(message)
                case Reply(request, documents, last):
                    self._answer(request, documents, last)
                case Refused(request, code, text):
                    if (pending := self._pending.get(request)) and not pending.answer.done():
                        pending.answer.set_exception(RefusedError(code, text))
                case Goodbye(code, text):
                    log.info("the coordinator ends the connection: %s (%s)", text, code)
                    self._why = code if code != "stopping" else ""
                    connection.close()
                    return
                case _:
                    log.debug("the coordinator sent a %s, which is nothing to this process", type(message).__name__)

    def closed(self, connection: Connection, reason: str) -> None:
        """stream: gone."""
        if self._welcomed:
            log.info("the coordinator is gone: %s; pages show its last numbers until it is back", reason)
            self.since = time.time()
        self._welcomed = False
        self._connection = None
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(UnreachableError(f"the coordinator went away: {reason}; ask again"))
        self._gone.set()

    def _hear(self, answers: bool) -> None:
        """Note whether the coordinator answers, and since when."""
        if self._silent == answers:
            self._silent = not answers
            self.since = time.time()

    def _welcome(self, welcome: Welcome) -> None:
        self.cluster = Cluster(welcome.cluster, welcome.name, welcome.epoch)
        self._welcomed = True
        self._silent = False
        self.forget()
        self.since = time.time()
        log.info("linked to the coordinator of %s, epoch %d", welcome.name, welcome.epoch)

    def _answer(self, request: int, documents: list[bytes], last: bool) -> None:
        pending = self._pending.get(request)
        if pending is None or pending.answer.done():  # it came too late
            return
        pending.documents += documents
        pending.size += sum(map(len, documents))
        if pending.size > ANSWER_BYTES_MAX:
            pending.answer.set_exception(RefusedError("too_large", f"the answer is over {ANSWER_BYTES_MAX} bytes"))
        elif last:
            pending.answer.set_result(pending.documents)
