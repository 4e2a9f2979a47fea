"""The client library: submit jobs, wait for them, read their results. `dctl` stands on it alone.

Owns the requests and what they mean to a caller. Connections and their return after a restart are
`client_pool.py`'s, who we are `client_trust.py`'s, inputs `client_items.py`'s, large payloads `client_blobs.py`'s. Never imports asyncio.
"""

import os
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from districomp.client_job import WATCH_S, Job
from districomp.client_link import Link
from districomp.client_pool import DataPlace, LinkPool
from districomp.client_results import Ledger, Requeued, TaskRecord, TaskResult, stderr_of
from districomp.client_socket import LinkLostError
from districomp.client_trust import Notice
from districomp.documents import (
    DefinitionDocument,
    DefinitionShowDocument,
    ExplainDocument,
    JobDocument,
    StatusDocument,
    TaskDocument,
    WorkerDocument,
)
from districomp.errors import DistricompError, LocalProtocolError, RefusedError, RemoteProtocolError, UsageError
from districomp.messages import (
    Accepted,
    AskGrant,
    Cancel,
    Granted,
    Items,
    Message,
    Query,
    Reply,
    ResultRows,
    Results,
    Retry,
    Submit,
    Watch,
)
from districomp.model import Blob, parse_task
from districomp.wire import UNREADABLE

if TYPE_CHECKING:
    from districomp.client_admin import Admin
    from districomp.client_blobs import Blobs
    from districomp.client_items import Batches, GivenItem

ENDED_JOB_STATES: Final = ("done", "failed", "cancelled")

Document = TypeVar("Document", bound=msgspec.Struct)
Streamed = TypeVar("Streamed", Reply, ResultRows)


class Client:
    """A coordinator, as one who submits sees it. Use as a context manager; safe to use from several threads.

    Without `coordinator` (HOST:PORT, or a socket's path) it is the local control socket, else DISTRICOMP_COORDINATOR, else
    the cluster that this user has joined (`dctl join`, or `token_file`, else DISTRICOMP_TOKEN_FILE, at the first use).
    When the coordinator goes away later, every call waits for it to come back; `on_notice` is then told so.
    """

    def __init__(
        self,
        coordinator: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        *,
        program: str = "python",
        on_notice: Notice | None = None,
    ) -> None:
        self._pool = LinkPool(coordinator, program, on_notice, token_file)
        self._blobs: Blobs | None = None

    def __enter__(self) -> Self:
        """Connect. UnreachableError if there is no coordinator, TrustError if it or we cannot prove who we are."""
        self._pool.give(self._pool.take())
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; jobs go on."""
        self._pool.close()
        if self._blobs is not None:
            self._blobs.close()

    # ---- jobs ----

    def submit(
        self,
        definition: str,
        *,
        data: bytes | str | os.PathLike[str] | None = None,
        items: "Iterable[GivenItem] | None" = None,
        files: Iterable[str | os.PathLike[str]] | None = None,
        range: range | None = None,
        matrix: Mapping[str, Sequence[Any]] | None = None,
        params: Mapping[str, Any] | None = None,
        name: str = "",
        request_id: str | None = None,
        max_fails: int | None = None,
    ) -> Job:
        """Submit a job with one of: nothing (one task without input), `data`, `items`, `files`, `range`, `matrix`.

        A path as `data` or an item means its content; `files` also sends the path as the item's text; `matrix` has the
        values of params, a task for each combination, the last name varying fastest. The same `request_id` (a UUID)
        gives the same job. UsageError, or RefusedError by the coordinator: nothing was submitted.
        """
        from districomp.client_items import Batches, combinations, given_items, start_and_step

        if sum(form is not None for form in (data, items, files, range, matrix)) > 1:
            raise UsageError(
                "one submission has one form of input: data, items, files, range or matrix; give only one of them"
            )
        request_id = request_id or str(uuid.uuid4())
        message = Submit(0, request_id, definition, dict(params or {}), name, max_fails=max_fails, count=1)
        if range is not None:
            message.numbers, message.count = start_and_step(range), len(range)
            return self._submit(message, None)
        if matrix is not None:
            message.matrix, message.count = combinations(matrix), 0
            return self._submit(message, None)
        source = given_items(data, items, files)
        if source is None:
            return self._submit(message, None)
        message.count = 0
        batches = Batches(source, self.upload)
        try:
            return self._submit(message, batches)
        finally:
            batches.close()

    def job(self, number: int, tasks: int | None = None) -> Job:
        """A job by its number; nothing is asked yet."""
        return Job(self, number, tasks)

    def jobs(self, *, mine: bool = False) -> list[JobDocument]:
        """All jobs that the coordinator knows, or those of this user, by number."""
        return self.ask(JobDocument, lambda link, request: Query(request, "jobs", user=link.user if mine else ""))

    def watch(
        self, jobs: Sequence[int], interval_s: float = WATCH_S, timeout: float | None = None
    ) -> Iterator[list[JobDocument]]:
        """Documents of jobs, now and whenever they change, until all have ended. TimeoutError after `timeout` seconds."""
        deadline = _deadline(timeout)
        for reply in self._stream(lambda request: Watch(request, list(jobs), interval_s), Reply, deadline):
            if reply.documents:
                yield [_document(body, JobDocument) for body in reply.documents]

    def wait(self, jobs: Sequence[int], timeout: float | None = None) -> list[JobDocument]:
        """The final documents of jobs, by number, when all have ended. TimeoutError after `timeout` seconds."""
        latest: dict[int, JobDocument] = {}
        for documents in self.watch(jobs, 1.0, timeout):
            latest.update((document.job, document) for document in documents)
        return [latest[number] for number in sorted(latest)]

    def records(
        self, job: int, *, wait: bool = True, timeout: float | None = None, tasks: int | None = None
    ) -> Iterator[TaskRecord | Requeued]:
        """The ended tasks of a job as they end; with `wait` until the job has ended. TimeoutError after `timeout`.

        A Requeued takes back records of before it; none comes that is known to be taken back already. `tasks` is how
        many the job has (asked for if it is None).
        """
        deadline = _deadline(timeout)
        ledger: Ledger | None = None
        for rows in self._followed(job, deadline) if wait else self._so_far(job, deadline):
            if rows.rows and ledger is None:
                ledger = Ledger(job, tasks if tasks is not None else self.job(job).document().tasks)
            if ledger is not None:
                outcomes = [ledger.read(body) for body in rows.rows]
                if not rows.ended and ledger.must_look_ahead(outcomes):
                    self._look_ahead(job, ledger, rows.after, deadline)
                for outcome in outcomes:
                    yield from ledger.take(outcome)
        if ledger is not None:
            yield from ledger.swept()

    def _followed(self, job: int, deadline: float | None) -> Iterator[ResultRows]:
        """A job's rows as they are recorded, until it has ended."""
        after = 0

        def go_on(request: int) -> Results:
            return Results(request, job, after, wait=True, follow=True)

        for rows in self._stream(go_on, ResultRows, deadline):
            after = rows.after
            yield rows

    def _so_far(self, job: int, deadline: float | None) -> Iterator[ResultRows]:
        """A job's rows that are recorded by now."""
        after = 0
        while True:
            rows = self._results(job, after, deadline)
            after = rows.after
            yield rows
            if rows.ended or not rows.rows:
                return

    def _look_ahead(self, job: int, ledger: Ledger, after: int, deadline: float | None) -> None:
        """Read what is there of a job's rows, only to know what a person has queued again by now."""
        after = max(after, ledger.seen)
        while True:
            rows = self._results(job, after, deadline)
            for body in rows.rows:
                ledger.read(body)
            after = rows.after
            if rows.ended or not rows.rows:
                return

    def retry(self, job: int, *, failed_only: bool = False) -> JobDocument:
        """Queue a job's failed, cancelled and skipped tasks again, or only the failed; recorded when this returns its document."""
        return self.ask(JobDocument, lambda _link, request: Retry(request, job, failed_only))[0]

    def cancel(self, job: int, indexes: Sequence[int] = ()) -> JobDocument:
        """Cancel a job, or some of its tasks; recorded when this returns the job's document."""
        return self.ask(JobDocument, lambda _link, request: Cancel(request, job, list(indexes)))[0]

    # ---- what there is ----

    def status(self) -> StatusDocument:
        """The cluster in figures."""
        return self._query(StatusDocument, noun="status")[0]

    def tasks(self, job: int, state: str = "") -> list[TaskDocument]:
        """A job's tasks, perhaps only those in one state. Of a job of millions take `each_task`."""
        return list(self.each_task(job, state))

    def each_task(self, job: int, state: str = "") -> Generator[TaskDocument, None, None]:
        """As `tasks`, one by one as they come; who stops early does not have the rest sent."""
        last = -1
        for reply in self._stream(lambda request: Query(request, "tasks", job, state=state), Reply):
            for document in [_document(body, TaskDocument) for body in reply.documents]:
                index = parse_task(document.task)[1]
                if index > last:  # else it came by a connection that was lost
                    last = index
                    yield document

    def task(self, job: int, index: int) -> TaskDocument:
        """One task with its attempts."""
        return self._query(TaskDocument, noun="task", job=job, index=index)[0]

    def explain(self, job: int, index: int) -> ExplainDocument:
        """Why a task is where it is. Of one that has ended, its last attempt says more: `task`."""
        return self._query(ExplainDocument, noun="explain", job=job, index=index)[0]

    def stderr(self, job: int, index: int) -> tuple[int, bytes] | None:
        """The last attempt of a task that has ended: its number, and the last 64 KiB that it wrote to standard error.

        None if none has ended yet.
        """
        ended = [attempt for attempt in self.task(job, index).attempts if attempt.reason is not None]
        if not ended:
            return None
        text = ended[-1].stderr_tail
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return len(ended), text.encode()
        # Documents are text; the bytes as they were are in the job's rows alone.
        said, after, whole = b"", 0, False
        while not whole:
            rows = self._results(job, after, None)
            for body in rows.rows:
                found = stderr_of(body, index)
                said = said if found is None else found
            after, whole = rows.after, rows.ended or not rows.rows
        return len(ended), said

    def workers(self) -> list[WorkerDocument]:
        """All workers that the coordinator knows."""
        return self._query(WorkerDocument, noun="workers")

    def definitions(self) -> list[DefinitionDocument]:
        """What can be submitted, and which files are wrong."""
        return self._query(DefinitionDocument, noun="definitions")

    def definition(self, name: str) -> DefinitionShowDocument:
        """One definition that is live, whole. RefusedError (`unknown_definition`) if there is none of that name."""
        return self._query(DefinitionShowDocument, noun="definition", name=name)[0]

    def document(self, job: int) -> JobDocument:
        """One job."""
        return self._query(JobDocument, noun="job", job=job)[0]

    def download(self, task: str, blob: Blob, file: IO[bytes]) -> None:
        """Fetch a task's result above 64 KiB into a seekable file, checked."""
        self._data_port().get(f"/results/{task}", blob, file)

    def upload(self, file: IO[bytes]) -> Blob:
        """Bring a payload above 64 KiB, a seekable file, to the data port; as an item it is then 40 bytes."""
        return self._data_port().put(file)

    def take_link(self, losses: int = 0) -> Link:
        """A connection of the caller's own, to be closed; `losses`: how many before it broke in a row, without an answer."""
        return self._pool.take(None, losses)

    def grant(self, verb: str, path: str) -> Granted:
        """The right to do something at the data port, as `messages.AskGrant` has it; '' if it asks nobody for a right."""

        def ask(link: Link) -> Granted:
            if not link.authorities:
                return Granted(0, "", 0.0)
            request = link.next_request()
            link.send(AskGrant(request, verb, path))
            return _expect(link.receive(request), Granted)

        return self._pool.call(ask)

    def data_place(self, anew: bool = False) -> DataPlace:
        """Where the data port is, and whom to believe there; `anew`: asked now."""
        return self._pool.data_place(anew)

    @property
    def admin(self) -> "Admin":
        """Tokens, who belongs to the cluster, and its authority; for the role admin."""
        from districomp.client_admin import Admin

        return Admin(self)

    # ---- inside ----

    def _submit(self, message: Submit, batches: "Batches | None") -> Job:
        try:
            accepted = self._pool.call(lambda link: _send_submission(link, message, batches))
        except LocalProtocolError as error:
            raise UsageError(f"the submission does not fit into a message: {error}; shorten its parameters") from error
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{error.object[:60]!r} is not Unicode, so it can be neither name nor parameter; give it as data or an item"
            ) from error
        return Job(self, accepted.job, accepted.tasks)

    def _results(self, job: int, after: int, deadline: float | None) -> ResultRows:
        def ask(link: Link) -> ResultRows:
            request = link.next_request()
            link.send(Results(request, job, after, wait=False))
            return _expect(link.receive(request, deadline), ResultRows)

        return self._pool.call(ask, deadline)

    def ask(self, kind: type[Document], make: Callable[[Link, int], Message], *, once: bool = False) -> list[Document]:
        """The documents that answer a message. `once`: it is not sent again when the connection breaks (LinkLostError)."""

        def ask(link: Link) -> list[Document]:
            request = link.next_request()
            link.send(make(link, request))
            return _documents(link, request, kind)

        return self._pool.call(ask, once=once)

    def _stream(
        self, make: Callable[[int], Message], kind: type[Streamed], deadline: float | None = None
    ) -> Iterator[Streamed]:
        """The replies to a request that has many, up to the last one; made anew, by `make`, whenever the connection broke."""
        losses = 0
        while True:
            link = self._pool.take(deadline, losses)
            whole = False
            try:
                request = link.next_request()
                link.send(make(request))
                while not whole:
                    reply = _expect(link.receive(request, deadline), kind)
                    whole, losses = reply.last if isinstance(reply, Reply) else reply.ended, 0
                    yield reply
                return
            except LinkLostError:
                losses += 1
            except RefusedError:
                whole = True
                raise
            finally:
                if whole:
                    self._pool.give(link)
                else:
                    link.close()

    def _query(self, kind: type[Document], **fields: Any) -> list[Document]:
        return self.ask(kind, lambda _link, request: Query(request, **fields))

    def _data_port(self) -> "Blobs":
        if self._blobs is None:
            from districomp.client_blobs import Blobs  # it brings http.client, which most commands never need

            self._blobs = Blobs(self._pool.data_place, lambda verb, path: self.grant(verb, path).grant)
        return self._blobs


def _send_submission(link: Link, message: Submit, batches: "Batches | None") -> Accepted:
    """Send one submission, whole, from its start, and take the answer."""
    request = link.next_request()
    message.request, message.user = request, link.user
    if batches is None:
        link.send(message)
        return _expect(link.receive(request), Accepted)
    source = iter(batches)
    batch = next(source, None)
    if batch is None:
        raise UsageError("nothing to submit: the input is empty, and a job needs at least one item")
    ahead = next(source, None)
    link.send(msgspec.structs.replace(message, items=batch, last=ahead is None))
    while ahead is not None:
        # The answer may come early: a refusal, or the job that this request id has already.
        answer = link.poll(request)
        if answer is not None:
            return _expect(answer, Accepted)
        batch, ahead = ahead, next(source, None)
        link.send(Items(request, batch, last=ahead is None))
    return _expect(link.receive(request), Accepted)


def _documents(link: Link, request: int, kind: type[Document]) -> list[Document]:
    """All documents of a reply, which may come in several messages."""
    bodies: list[bytes] = []
    while True:
        reply = _expect(link.receive(request), Reply)
        bodies += reply.documents
        if reply.last:
            return [_document(body, kind) for body in bodies]


def _document(body: bytes, kind: type[Document]) -> Document:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"the coordinator sent a {kind.__name__} that cannot be read: {error}") from error


Expected = TypeVar("Expected", Accepted, Granted, Reply, ResultRows)


def _expect(message: object, kind: type[Expected]) -> Expected:
    if not isinstance(message, kind):
        raise RemoteProtocolError(f"the coordinator answered with {type(message).__name__}, not {kind.__name__}")
    return message


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


__all__ = ["Client", "DistricompError", "Job", "TaskResult"]
