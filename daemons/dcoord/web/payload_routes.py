"""`GET|HEAD /tasks/ID` and `/results/ID`: what a task was given and what it gave, read from the journal.

Owns how a payload becomes an HTTP answer. Needs no coordinator: these go on while it is away.
"""

import hashlib
import threading
from pathlib import Path
from typing import Final

from bottle import Bottle, HTTPResponse, request

from dcoord.blobs import BlobStore
from dcoord.journal_read import NotDoneError, Reader, UnknownTaskError
from dcoord.web.files import FileSlice, choose_part
from dcoord.web.problems import WebError
from dcoord.web.rights import ALLOWED, Allowed
from districomp.errors import JournalError
from districomp.model import Blob, File, Payload, item_content, parse_task

JOB_MAX: Final = (1 << 31) - 1
INDEX_MAX: Final = (1 << 32) - 1


class Readers:
    """A journal connection a thread, opened at its first use and again after an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def item(self, job: int, index: int) -> Payload | None:
        """The bytes that a task gets; None if there is no such task."""
        try:
            item = self._reader().item(job, index)
        except JournalError:
            self._forget()
            raise
        return item_content(item) if isinstance(item, File) else item

    def result(self, job: int, index: int) -> Payload | None:
        """As `Reader.result`."""
        try:
            return self._reader().result(job, index)
        except JournalError:
            self._forget()
            raise

    def owner(self, job: int) -> str | None:
        """The user whose job it is; None if there is no such job."""
        try:
            record = self._reader().record(job)
        except JournalError:
            self._forget()
            raise
        return None if record is None else record.user

    def _reader(self) -> Reader:
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = Reader(self._path)
        return reader

    def _forget(self) -> None:
        reader: Reader | None = getattr(self._local, "reader", None)
        self._local.reader = None
        if reader is not None:
            reader.close()


class PayloadRoutes:
    """The two routes; `add_to` puts them into a Bottle application."""

    def __init__(self, readers: Readers, store: BlobStore) -> None:
        self._readers = readers
        self._store = store

    def add_to(self, app: Bottle) -> None:
        """Register the routes."""
        app.get("/tasks/<task>", callback=self._task)
        app.get("/results/<task>", callback=self._result)

    def _task(self, task: str) -> HTTPResponse:
        job, index = task_id(task)
        self._check_owner(job)
        payload = self._readers.item(job, index)
        if payload is None:
            raise WebError(
                "unknown_task", f"there is no task {job}.{index}; `dctl task list {job}` names those there are"
            )
        return self._answer(payload)

    def _result(self, task: str) -> HTTPResponse:
        job, index = task_id(task)
        self._check_owner(job)
        try:
            payload = self._readers.result(job, index)
        except UnknownTaskError as error:
            raise WebError("unknown_task", f"{error}; `dctl task list {job}` names those there are") from error
        except NotDoneError as error:
            raise WebError("no_result", f"{error}; `dctl task show {job}.{index}` tells more") from error
        return self._answer(b"" if payload is None else payload)

    def _check_owner(self, job: int) -> None:
        """Refuse those who see only their own a job of somebody else; one that is not there is for the others to miss."""
        only = allowed().only
        if only and self._readers.owner(job) not in (None, only):
            raise WebError("not_allowed", f"job {job} is another user's; role submit reads its own jobs alone")

    def _answer(self, payload: Payload) -> HTTPResponse:
        if isinstance(payload, Blob):
            name, size = payload.sha256.hex(), payload.size
            if self._store.size(name) != size:
                raise WebError("blob_missing", f"blob {name} of this task is not in {self._store.root} whole")
        else:
            name, size = hashlib.sha256(payload).hexdigest(), len(payload)
        asked = request.headers
        part = choose_part(
            size, name, asked.get("If-None-Match", ""), asked.get("Range", ""), asked.get("If-Range", "")
        )
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": "attachment",
            "Cache-Control": "private, no-cache",
            **dict(part.headers),
        }
        if part.status == 416:
            return HTTPResponse(b"", 416, headers)
        body: bytes | FileSlice
        if isinstance(payload, Blob):
            body = FileSlice(self._store.path(name), part.offset, part.size) if part.size else b""
        else:
            body = bytes(payload[part.offset : part.offset + part.size])
        return HTTPResponse(body, part.status, headers)


def allowed() -> Allowed:
    """What the request under way was allowed."""
    found = request.environ[ALLOWED]
    assert isinstance(found, Allowed)
    return found


def task_id(text: str) -> tuple[int, int]:
    """A task's id from a path; WebError if it is anything but JOB.INDEX as we write it."""
    try:
        job, index = parse_task(text) if len(text) <= 24 else (0, 0)
    except ValueError as error:
        raise WebError("bad_request", str(error)) from error
    if not 0 < job <= JOB_MAX or not 0 <= index <= INDEX_MAX or text != f"{job}.{index}":
        raise WebError("bad_request", f"{text!r:.40} is not a task id; a task is JOB.INDEX, for example 42.7")
    return job, index


def job_id(text: str) -> int:
    """A job's number from a path; WebError if it is anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= JOB_MAX and text[0] != "0"):
        raise WebError("bad_request", f"{text!r:.40} is not a job; a job is a number, for example 42")
    return int(text)
