"""What became of tasks, as a client sees it: the journal's rows unpacked, and which of them stand.

Owns `TaskResult` and `Ledger`. Must not know connections, nor in which order results are wanted (`client_shelf.py`).
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from districomp.errors import DistricompError, RemoteProtocolError
from districomp.model import DONE, QUEUED, STATE_NAMES, Blob, Payload, payload_size, task_text
from districomp.outcome import Outcome
from districomp.wire import UNREADABLE

SWEPT: Final = 0x80
"""Marks a state in a ledger as taken by a sweep."""

Download = Callable[[str, Blob, IO[bytes]], None]
"""Writes the result of a task (its id), which is this blob, into a file."""


class TaskFailedError(DistricompError):
    """A result was asked for of a task that has none."""


class TaskRecord(msgspec.Struct, array_like=True, gc=False):
    """The attempt by which a task ended; what is not known is None or empty."""

    job: int
    index: int
    state: int
    worker: str = ""
    attempt: int = 0
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    started: float | None = None
    ended: float | None = None
    stderr: bytes = b""
    payload: Payload | None = None


class TaskResult:
    """A task that has ended: `index`, `state`, `reason` and the rest of `record`; `read()` gives the result."""

    __slots__ = ("_download", "record")

    def __init__(self, record: TaskRecord, download: Download) -> None:
        self.record = record
        self._download = download

    def __repr__(self) -> str:
        return f"<TaskResult {self.task} {self.state}>"

    @property
    def index(self) -> int:
        """The task's place in its job, from 0."""
        return self.record.index

    @property
    def task(self) -> str:
        """The task's id, `JOB.INDEX`."""
        return task_text(self.record.job, self.record.index)

    @property
    def state(self) -> str:
        """done, failed, cancelled or skipped."""
        return STATE_NAMES[self.record.state]

    @property
    def ok(self) -> bool:
        """Whether the task is done, so that it has a result."""
        return self.record.state == DONE

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return payload_size(self.record.payload)

    @property
    def blob(self) -> Blob | None:
        """The result's name and size if it is above 64 KiB."""
        return self.record.payload if isinstance(self.record.payload, Blob) else None

    def why(self) -> str:
        """How the task ended, in a few words: `exit 1`, `signal 9`, `timeout`, `cancelled`."""
        record = self.record
        if record.reason == "exit" and record.exit_code is not None:
            return f"exit {record.exit_code}"
        if record.reason == "signal" and record.signal is not None:
            return f"signal {record.signal}"
        return record.reason or self.state

    def read(self) -> bytes:
        """The result's bytes, fetched if they are above 64 KiB. TaskFailedError if the task is not done."""
        self._need_done()
        if not isinstance(self.record.payload, Blob):
            return self.record.payload or b""
        file = io.BytesIO()
        self._download(self.task, self.record.payload, file)
        return file.getvalue()

    def copy_to(self, file: IO[bytes]) -> None:
        """Write the result into a seekable file. TaskFailedError if the task is not done."""
        self._need_done()
        if isinstance(self.record.payload, Blob):
            self._download(self.task, self.record.payload, file)
        else:
            file.write(self.record.payload or b"")

    def save(self, path: str | Path) -> None:
        """Write the result to a file, which appears once it is whole. TaskFailedError if the task is not done."""
        whole = Path(path)
        part = whole.with_name(whole.name + ".part")
        try:
            with part.open("wb") as file:
                self.copy_to(file)
            part.replace(whole)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _need_done(self) -> None:
        if self.ok:
            return
        tail = self.record.stderr.decode("utf-8", "replace").strip()
        said = f"; it said: {tail[-2000:]}" if tail else ""
        raise TaskFailedError(f"task {self.task} has no result: {self.state} ({self.why()}){said}")


class Requeued(msgspec.Struct, frozen=True, gc=False):
    """A person had the tasks in these states queued again: their records of before are void."""

    states: list[int]


class Ledger:
    """A job's rows, read in their order: which records stand, and which a person has made void by queueing again."""

    def __init__(self, job: int, tasks: int) -> None:
        self._job = job
        self._marks = bytearray(tasks)
        """The state told of each task; with SWEPT: it took that state with all that were queued, and was not told yet."""
        self._void_before: dict[int, int] = {}
        """By state: records of it in rows before this one do not stand."""
        self.seen = 0
        """Rows up to this serial have been read, perhaps ahead of being taken."""

    def read(self, body: bytes) -> Outcome:
        """A row; what it makes void is known from now on. RemoteProtocolError if it makes no sense for this job."""
        outcome = _read(body)
        if any(not 0 <= index < len(self._marks) for index in outcome.indexes):
            raise RemoteProtocolError(f"the coordinator sent a result of a task that job {outcome.job} does not have")
        if any(not 0 <= state < len(STATE_NAMES) for state in [*outcome.states, outcome.sweep or QUEUED]):
            raise RemoteProtocolError("the coordinator sent a state of a task that this version does not know")
        self.seen = max(self.seen, outcome.serial)
        if outcome.sweep == QUEUED:
            for state in outcome.states:
                self._void_before[state] = max(outcome.serial, self._void_before.get(state, 0))
        return outcome

    def must_look_ahead(self, outcomes: Iterable[Outcome]) -> bool:
        """Whether rows after those read could take something back of these."""
        return any(
            any(state not in (QUEUED, DONE) for state in outcome.states) if outcome.sweep is None else outcome.sweep
            for outcome in outcomes
        )

    def take(self, outcome: Outcome) -> Iterator[TaskRecord | Requeued]:
        """The records of a row that stand."""
        if outcome.sweep == QUEUED:
            for state in outcome.states:
                for mark in (state, state | SWEPT):
                    self._marks = self._marks.replace(bytes((mark,)), bytes((QUEUED,)))
            yield Requeued(outcome.states)
        elif outcome.sweep is not None:
            if self._stands(outcome, outcome.sweep):
                self._marks = self._marks.replace(bytes((QUEUED,)), bytes((outcome.sweep | SWEPT,)))
        else:
            try:
                for record in ended_tasks(outcome):
                    if self._stands(outcome, record.state):
                        self._marks[record.index] = record.state
                        yield record
            except IndexError as error:
                raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error

    def swept(self) -> Iterator[TaskRecord]:
        """At the end: the tasks that took a state all at once, before they were ever leased."""
        if max(self._marks, default=0) < SWEPT:
            return
        for index, mark in enumerate(self._marks):
            if mark & SWEPT:
                yield TaskRecord(self._job, index, mark & ~SWEPT)

    def _stands(self, outcome: Outcome, state: int) -> bool:
        return outcome.serial >= self._void_before.get(state, 0)


_outcomes: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome)


def ended_tasks(outcome: Outcome) -> Iterator[TaskRecord]:
    """The tasks that a row of the journal ends; attempts that will be retried are left out."""
    for place, index in enumerate(outcome.indexes):
        state = outcome.states[place] if outcome.states else DONE
        if state == QUEUED:
            continue
        yield TaskRecord(
            outcome.job,
            index,
            state,
            outcome.worker,
            outcome.attempts[place] if outcome.attempts else 1,
            outcome.reasons[place] if outcome.reasons else "done",
            outcome.exit_codes[place] if outcome.exit_codes else None,
            outcome.signals[place] if outcome.signals else None,
            outcome.started[place] if outcome.started else None,
            outcome.ended[place] if outcome.ended else None,
            outcome.stderr[place] if outcome.stderr else b"",
            outcome.results[place] if outcome.results else None,
        )


def stderr_of(body: bytes, index: int) -> bytes | None:
    """What an attempt of a task wrote to standard error, if this row has one. RemoteProtocolError if it makes no sense."""
    outcome = _read(body)
    if index not in outcome.indexes:
        return None
    place = outcome.indexes.index(index)
    try:
        if outcome.attempts and outcome.attempts[place] == 0:  # cancelled before there was one
            return None
        return outcome.stderr[place] if outcome.stderr else b""
    except IndexError as error:
        raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error


def _read(body: bytes) -> Outcome:
    try:
        return _outcomes.decode(body)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error
