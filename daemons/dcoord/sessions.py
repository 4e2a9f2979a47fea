"""What clients ask, beside submitting and cancelling: documents, watching jobs, and results as they come.

Answers after the commit of the batch in which a question came, so that nobody hears of what may still
be lost. How results travel is `following.py`'s. Journal reads run in a thread of their own.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from dcoord.core import view
from dcoord.core.administer import token_documents
from dcoord.core.core import Core
from dcoord.core.explain import explain
from dcoord.core.job import Job
from dcoord.core.records import Record, RestoredJob
from dcoord.core.rights import Principal, sees
from dcoord.following import Following, Rows, Spawn
from dcoord.journal import Reader
from dcoord.taskview import JobSnapshot, Running, task_document, task_documents
from districomp import clock
from districomp.documents import DefinitionDocument, DefinitionShowDocument
from districomp.errors import DistricompError
from districomp.messages import BATCH_BYTES, AnyMessage, Query, Refused, Reply, Results, Watch
from districomp.model import STATE_NAMES
from districomp.stream import Connection

log = logging.getLogger(__name__)

T = TypeVar("T")

PARKED_MAX: Final = 1024
"""Requests of one connection that wait for something, or for the journal; a further one is refused."""
LIST_WEIGHT: Final = 32
"""A list of a job's tasks counts as so many: it takes a byte of memory for each."""
TASKS_BYTES: Final = 32 * 1024
"""Documents of tasks that are made in one go: each asks the journal, and others wait for the reading thread too."""
WATCH_INTERVAL_S_MIN: Final = 0.05
_OF_A_JOB: Final = ("job", "task", "tasks", "explain")


class _Watcher:
    """A Watch under way."""

    __slots__ = ("connection", "due", "interval_s", "jobs", "request", "timer")

    def __init__(self, connection: Connection, message: Watch) -> None:
        self.connection = connection
        self.request = message.request
        self.jobs = list(dict.fromkeys(message.jobs))
        self.interval_s = max(WATCH_INTERVAL_S_MIN, message.interval_s)
        self.due = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Sessions:
    """Answers clients from the core (in the loop) and from the journal (in the reading thread)."""

    def __init__(self, core: Callable[[], Core], journal: Path, spawn: Spawn) -> None:
        """`core` gives the core of now: it may be replaced when the journal fails. `spawn` runs something beside the loop."""
        self.definitions: list[DefinitionDocument] = []
        self._core = core
        self._journal = journal
        self._spawn = spawn
        self._reader: Reader | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-reader")
        self._watchers: dict[int, dict[_Watcher, None]] = {}
        self._following = Following(core, self._read_rows, spawn)
        self._parked: dict[int, int] = {}

    # ---- the driver's side ----

    def on_message(self, connection: Connection, asker: Principal, message: AnyMessage) -> None:
        """A question; called after the commit of the batch in which it came."""
        if isinstance(message, Query) and asker.role == "web" and message.user:
            # On behalf of somebody who may see his own alone.
            asker = Principal("submit", user=message.user)
        foreign = next((number for number in _jobs_of(message) if not self._may_see(asker, number)), None)
        if foreign is not None:
            text = f"job {foreign} is not yours, and your role is {asker.role}"
            _refuse(connection, _request_of(message), "not_allowed", text)
        elif isinstance(message, Query):
            self._query(connection, asker, message)
        elif isinstance(message, Watch):
            self._watch(connection, message)
        elif isinstance(message, Results):
            self._results(connection, message)

    def _may_see(self, asker: Principal, number: int) -> bool:
        """Whether a job may be seen; one that there is not may be asked for."""
        job = self._core().jobs.get(number)
        return job is None or sees(asker, job.record.user)

    def after_batch(self, records: Iterable[Record]) -> None:
        """A batch is committed: tell those who wait for what is in it."""
        core = self._core()
        self._following.after_batch(records, core.changed)
        for number in core.changed:
            for watcher in list(self._watchers.get(number, ())):
                self._notify(watcher)
        core.changed.clear()

    def forget(self, peer: int) -> None:
        """A connection is gone."""
        self._following.forget(peer)
        if self._parked.pop(peer, None) is None:
            return
        for watchers in list(self._watchers.values()):
            for watcher in [w for w in watchers if w.connection.peer == peer]:
                self._end_watch(watcher)

    def job_reply(self, connection: Connection, request: int, job: int) -> None:
        """Answer a request with a job's document."""
        document = view.job_document(self._core().jobs[job], clock.now())
        connection.send(Reply(request, [msgspec.msgpack.encode(document)]))

    async def read_job(self, number: int) -> RestoredJob:
        """A job whole, heads included, from the journal. JournalError if it cannot be read."""

        def read(reader: Reader) -> RestoredJob:
            restored = reader.job(number, heads=True)
            assert restored is not None, "the core has only recorded jobs"
            return restored

        return await self._in_thread(read)

    async def close(self) -> None:
        """End the reading thread."""
        self._following.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close_reader)
        self._thread.shutdown()

    # ---- documents ----

    def _query(self, connection: Connection, asker: Principal, message: Query) -> None:
        core, now = self._core(), clock.now()
        match message.noun:
            case "status":
                _reply(connection, message.request, [view.status_document(core, now)])
            case "jobs":
                jobs = (
                    job
                    for job in core.jobs.values()
                    if message.user in ("", job.record.user) and sees(asker, job.record.user)
                )
                _reply(connection, message.request, (view.job_document(job, now) for job in jobs))
            case "tokens" if asker.role == "admin":
                _reply(connection, message.request, token_documents(core))
            case "tokens":
                text = f"tokens are for the role admin, and yours is {asker.role}"
                _refuse(connection, message.request, "not_allowed", text)
            case "workers":
                _reply(connection, message.request, view.worker_documents(core, now))
            case "definitions":
                _reply(connection, message.request, self.definitions)
            case "definition":
                self._query_definition(connection, message)
            case noun if noun in _OF_A_JOB:
                self._query_job(connection, message, core, now)
            case _:
                _refuse(connection, message.request, "bad_request", f"there are no documents {message.noun!r}")

    def _query_definition(self, connection: Connection, message: Query) -> None:
        definition = self._core().definitions.get(message.name)
        if definition is None:
            text = f"there is no live definition {message.name!r}; see: dctl def list"
            _refuse(connection, message.request, "unknown_definition", text)
            return
        entry = next(document for document in self.definitions if document.name == message.name)
        document = DefinitionShowDocument(definition.name, definition.digest, entry.origin, definition, entry.problems)
        _reply(connection, message.request, [document])

    def _query_job(self, connection: Connection, message: Query, core: Core, now: float) -> None:
        job = core.jobs.get(message.job)
        if job is None:
            _refuse_job(connection, message.request, message.job)
        elif message.noun == "job":
            _reply(connection, message.request, [view.job_document(job, now)])
        elif message.noun in ("task", "explain") and not 0 <= message.index < job.record.count:
            last = job.record.count - 1
            text = f"there is no task {job.id}.{message.index}; job {job.id} has {job.id}.0 to {job.id}.{last}"
            _refuse(connection, message.request, "unknown_task", text)
        elif message.noun == "explain":
            _reply(connection, message.request, [explain(core, job, message.index)])
        elif message.state not in ("", *STATE_NAMES):
            text = f"{message.state!r} is not a task's state; those are {', '.join(STATE_NAMES)}"
            _refuse(connection, message.request, "bad_request", text)
        elif message.noun == "task":
            if self._park(connection, message.request):
                self._spawn(self._answer_task(connection, message, _snapshot(core, job, message.index)))
        elif self._park(connection, message.request, LIST_WEIGHT):
            self._spawn(self._answer_tasks(connection, message, _snapshot(core, job, None)))

    async def _answer_task(self, connection: Connection, message: Query, snapshot: JobSnapshot) -> None:
        def one(reader: Reader) -> list[bytes]:
            return [msgspec.msgpack.encode(task_document(reader, snapshot, message.index))]

        documents = await self._read(connection, message.request, one)
        if documents is not None:
            connection.send(Reply(message.request, documents))
        self._unpark(connection)

    async def _answer_tasks(self, connection: Connection, message: Query, snapshot: JobSnapshot) -> None:
        pending: list[Iterator[bytes]] = []

        def begin_or_go_on(reader: Reader) -> list[bytes]:
            if not pending:
                documents = task_documents(reader, snapshot, message.state)
                pending.append(msgspec.msgpack.encode(document) for document in documents)
            return _some(pending[0], TASKS_BYTES)

        while not connection.is_closing:
            documents = await self._read(connection, message.request, begin_or_go_on)
            if documents is None:
                break
            connection.send(Reply(message.request, documents, last=not documents))
            if not documents:
                break
            await connection.drained()
        self._unpark(connection, LIST_WEIGHT)

    # ---- watching ----

    def _watch(self, connection: Connection, message: Watch) -> None:
        core = self._core()
        for number in message.jobs:
            if number not in core.jobs:
                _refuse_job(connection, message.request, number)
                return
        if not self._park(connection, message.request):
            return
        watcher = _Watcher(connection, message)
        for number in watcher.jobs:
            self._watchers.setdefault(number, {})[watcher] = None
        self._tell(watcher)

    def _notify(self, watcher: _Watcher) -> None:
        """A watched job changed: tell now, or when the interval has passed."""
        loop = asyncio.get_running_loop()
        wait_s = watcher.due - loop.time()
        jobs = self._core().jobs
        if wait_s <= 0 or all(jobs[number].is_ended for number in watcher.jobs):
            self._tell(watcher)
        elif watcher.timer is None:
            watcher.timer = loop.call_later(wait_s, self._tell, watcher)

    def _tell(self, watcher: _Watcher) -> None:
        if watcher.timer is not None:
            watcher.timer.cancel()
            watcher.timer = None
        core, now = self._core(), clock.now()
        jobs = [core.jobs[number] for number in watcher.jobs]
        last = all(job.is_ended for job in jobs)
        documents = [msgspec.msgpack.encode(view.job_document(job, now)) for job in jobs]
        watcher.connection.send(Reply(watcher.request, documents, last))
        watcher.due = asyncio.get_running_loop().time() + watcher.interval_s
        if last:
            self._end_watch(watcher)
            self._unpark(watcher.connection)

    def _end_watch(self, watcher: _Watcher) -> None:
        if watcher.timer is not None:
            watcher.timer.cancel()
            watcher.timer = None
        for number in watcher.jobs:
            watchers = self._watchers.get(number)
            if watchers is not None:
                watchers.pop(watcher, None)
                if not watchers:
                    del self._watchers[number]

    # ---- results ----

    def _results(self, connection: Connection, message: Results) -> None:
        if message.job in self._core().jobs:
            self._following.follow(connection, message)
        else:
            _refuse_job(connection, message.request, message.job)

    async def _read_rows(self, connection: Connection, request: int, job: int, after: int) -> Rows | None:
        found = await self._read(connection, request, lambda reader: reader.rows(job, after, BATCH_BYTES))
        if found is not None and not found[0]:
            _refuse(connection, request, "degraded", f"the journal lacks what came after row {after} of job {job}")
            return None
        return found

    # ---- inside ----

    async def _in_thread(self, read: Callable[[Reader], T]) -> T:
        def run() -> T:
            if self._reader is None:
                self._reader = Reader(self._journal)
            return read(self._reader)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def _read(self, connection: Connection, request: int, read: Callable[[Reader], T]) -> T | None:
        """Run `read` in the reading thread; None after the client was told that it failed."""
        try:
            return await self._in_thread(read)
        except DistricompError as error:
            log.error("reading for %s: %s", connection.address, error)
            _refuse(connection, request, "degraded", str(error))
            return None

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _park(self, connection: Connection, request: int, weight: int = 1) -> bool:
        parked = self._parked.get(connection.peer, 0) + weight
        if parked > PARKED_MAX:
            text = f"this connection already waits for {PARKED_MAX} answers, a list of tasks counted as {LIST_WEIGHT}"
            _refuse(connection, request, "bad_request", text)
            return False
        self._parked[connection.peer] = parked
        return True

    def _unpark(self, connection: Connection, weight: int = 1) -> None:
        left = self._parked.get(connection.peer, 0) - weight
        if left > 0:
            self._parked[connection.peer] = left
        else:
            self._parked.pop(connection.peer, None)


def _snapshot(core: Core, job: Job, only: int | None) -> JobSnapshot:
    """All tasks of a job, or one."""
    running: dict[int, Running] = {}
    for worker in core.fleet.by_id.values():
        for lease in worker.leases.values():
            if lease.job is job and lease.started is not None and not lease.stopping:
                running[lease.index] = Running(worker.id, lease.started)
    first, end = (0, job.record.count) if only is None else (only, only + 1)
    return JobSnapshot(job.id, job.record.count, bytes(job.states[first:end]), running, first)


def _some(documents: Iterator[bytes], most: int = BATCH_BYTES) -> list[bytes]:
    """The next documents, of about `most` bytes."""
    taken: list[bytes] = []
    size = 0
    for document in documents:
        taken.append(document)
        size += len(document)
        if size >= most:
            break
    return taken


def _reply(connection: Connection, request: int, documents: Iterable[msgspec.Struct]) -> None:
    encoded = (msgspec.msgpack.encode(document) for document in documents)
    part = _some(encoded)
    while part:
        following = _some(encoded)
        connection.send(Reply(request, part, last=not following))
        part = following
        if not part:
            return
    connection.send(Reply(request, []))


def _refuse(connection: Connection, request: int, code: str, text: str) -> None:
    connection.send(Refused(request, code, text))


def _jobs_of(message: AnyMessage) -> list[int]:
    """The jobs that a question names."""
    if isinstance(message, Watch):
        return message.jobs
    if isinstance(message, Results):
        return [message.job]
    return [message.job] if isinstance(message, Query) and message.noun in _OF_A_JOB else []


def _request_of(message: AnyMessage) -> int:
    assert isinstance(message, Query | Watch | Results)
    return message.request


def _refuse_job(connection: Connection, request: int, job: int) -> None:
    _refuse(connection, request, "unknown_job", f"there is no job {job}; see: dctl job list")
