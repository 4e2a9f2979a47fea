"""The JSON API's read routes, `/api/v1/*`: the documents of `districomp.documents`, as `dctl --json` prints them.

Owns which path is which question. The coordinator answers it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from bottle import Bottle, HTTPResponse

from dcoord.web.link import CoordinatorLink, Question
from dcoord.web.payload_routes import job_id, task_id
from dcoord.web.problems import WebError
from dcoord.web.statistics import decode, to_json
from districomp.documents import (
    DefinitionDocument,
    JobDocument,
    StatusDocument,
    TaskDocument,
    WorkerDocument,
)

WAIT_S: Final = 10.0
"""A thread never waits longer for the event loop; the link's own limit is shorter."""
T = TypeVar("T")


class Asking:
    """The coordinator's link for handlers that run in threads."""

    def __init__(self, link: CoordinatorLink, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop

    def documents(self, question: Question, cls: type[T]) -> list[T]:
        """The documents that answer a question; UnreachableError, RefusedError."""
        return decode(self.wait(self._link.ask(question)), cls)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_S)


class ApiRoutes:
    """The routes; `add_to` puts them into a Bottle application."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def add_to(self, app: Bottle) -> None:
        """Register the routes."""
        app.get("/api/v1/status", callback=lambda: self._one(Question("status"), StatusDocument))
        app.get("/api/v1/jobs", callback=lambda: self._many(Question("jobs"), JobDocument))
        app.get("/api/v1/jobs/<job>", callback=lambda job: self._one(Question("job", job_id(job)), JobDocument))
        app.get("/api/v1/tasks/<task>", callback=lambda task: self._one(Question("task", *task_id(task)), TaskDocument))
        app.get("/api/v1/workers", callback=lambda: self._many(Question("workers"), WorkerDocument))
        app.get("/api/v1/definitions", callback=lambda: self._many(Question("definitions"), DefinitionDocument))

    def _one(self, question: Question, cls: type[object]) -> HTTPResponse:
        documents = self._asking.documents(question, cls)
        if not documents:
            raise WebError("not_found", f"the coordinator knows no such {question.noun}")
        return json_response(documents[0])

    def _many(self, question: Question, cls: type[object]) -> HTTPResponse:
        return json_response(self._asking.documents(question, cls))


def json_response(value: object) -> HTTPResponse:
    """A document as an answer that nobody keeps."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return HTTPResponse(to_json(value), 200, headers)
