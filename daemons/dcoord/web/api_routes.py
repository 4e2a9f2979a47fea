"""The JSON API, `/api/v1/*`: the documents of `districomp.documents`, as `dctl --json` prints them, and submitting.

Owns which path is which question. The coordinator answers it. `openapi` describes these routes.
"""

import asyncio
from collections.abc import Coroutine
from difflib import get_close_matches
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from bottle import Bottle, HTTPResponse, request

from dcoord.web import openapi
from dcoord.web.link import CoordinatorLink, Question
from dcoord.web.payload_routes import allowed, job_id, task_id
from dcoord.web.problems import WebError
from dcoord.web.statistics import decode, to_json
from dcoord.web.submission import Created, Request, read_submission
from dcoord.web.submitter import Submitter
from districomp.documents import (
    DefinitionDocument,
    DefinitionShowDocument,
    ExplainDocument,
    JobDocument,
    StatusDocument,
    TaskDocument,
    WorkerDocument,
)
from districomp.messages import Accepted
from districomp.model import STATE_NAMES

JOBS: Final = "/api/v1/jobs"
"""Where jobs are listed and, by POST, made."""
WAIT_S: Final = 10.0
"""A thread never waits longer for the event loop; the link's own limit is shorter."""
SUBMIT_S: Final = 600.0
"""The same for a submission, whose steps have limits of their own."""
TASKS_MAX: Final = 10_000
"""Tasks of one answer: each costs the coordinator a look into its journal."""
T = TypeVar("T")


class Asking:
    """The coordinator's link for handlers that run in threads."""

    def __init__(self, link: CoordinatorLink, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop

    def documents(self, question: Question, cls: type[T]) -> list[T]:
        """The documents that answer a question; UnreachableError, RefusedError."""
        return decode(self.wait(self._link.ask(question)), cls)

    def forget(self) -> None:
        """What was answered before is not true any more. On the event loop."""
        self._link.forget()

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = WAIT_S) -> T:
        """Run a coroutine on the event loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)


class ApiRoutes:
    """The routes; `add_to` puts them into a Bottle application."""

    def __init__(self, asking: Asking, submitter: Submitter) -> None:
        self._asking = asking
        self._submitter = submitter
        self._openapi = b""

    def add_to(self, app: Bottle) -> None:
        """Register the routes."""
        app.get("/api/v1/openapi.json", callback=self._describe)
        app.get("/api/v1/status", callback=lambda: self._one(Question("status"), StatusDocument))
        app.get(JOBS, callback=lambda: self._many(_own("jobs"), JobDocument))
        app.post(JOBS, callback=self._submit)
        app.get("/api/v1/jobs/<job>", callback=lambda job: self._one(_own("job", job_id(job)), JobDocument))
        app.get("/api/v1/jobs/<job>/tasks", callback=self._tasks)
        app.get("/api/v1/tasks/<task>", callback=lambda task: self._one(_own("task", *task_id(task)), TaskDocument))
        app.get(
            "/api/v1/tasks/<task>/explain",
            callback=lambda task: self._one(_own("explain", *task_id(task)), ExplainDocument),
        )
        app.get("/api/v1/workers", callback=lambda: self._many(Question("workers"), WorkerDocument))
        app.get("/api/v1/definitions", callback=lambda: self._many(Question("definitions"), DefinitionDocument))
        app.get(
            "/api/v1/definitions/<name>",
            callback=lambda name: self._one(Question("definition", name=name), DefinitionShowDocument),
        )

    def _one(self, question: Question, cls: type[object]) -> HTTPResponse:
        query()
        documents = self._asking.documents(question, cls)
        if not documents:
            raise WebError("not_found", f"the coordinator knows no such {question.noun}")
        return json_response(documents[0])

    def _many(self, question: Question, cls: type[object]) -> HTTPResponse:
        query()
        return json_response(self._asking.documents(question, cls))

    def _tasks(self, job: str) -> HTTPResponse:
        number, state = job_id(job), query("state").get("state", "")
        if state and state not in STATE_NAMES:
            raise WebError("bad_request", f"{state!r:.60} is not a task's state; those are {', '.join(STATE_NAMES)}")
        document = self._asking.documents(_own("job", number), JobDocument)[0]
        count = getattr(document.counts, state) if state else document.tasks
        if count > TASKS_MAX:
            raise WebError(
                "too_many",
                f"job {number} has {count:,} {state or 'such'} tasks, an answer has at most {TASKS_MAX:,};"
                " choose a state, or ask for single tasks: /api/v1/tasks/ID",
            )
        return json_response(self._asking.documents(_own("tasks", number, state=state), TaskDocument))

    def _submit(self) -> HTTPResponse:
        query()
        wanted = read_submission(request.environ["wsgi.input"].getvalue())
        wanted.message.user = allowed().user
        accepted = self._asking.wait(self._submitted(wanted), SUBMIT_S)
        answer = json_response(Created(accepted.job, accepted.tasks))
        answer.status = 201
        answer.set_header("Location", f"{JOBS}/{accepted.job}")
        return answer

    async def _submitted(self, wanted: Request) -> Accepted:
        accepted = await self._submitter.submit(wanted.message, wanted.items)
        self._asking.forget()  # the job is seen by whoever is told of it
        return accepted

    def _describe(self) -> HTTPResponse:
        query()
        self._openapi = self._openapi or openapi.render()
        return HTTPResponse(self._openapi, 200, {"Content-Type": "application/json", "Cache-Control": "no-cache"})


def _own(noun: str, job: int = 0, index: int = 0, *, state: str = "") -> Question:
    """A question about jobs; who may see only its own is answered only about these."""
    return Question(noun, job, index, state, user=allowed().only)


def query(*names: str) -> dict[str, str]:
    """The request's query parameters, each at most once. WebError if there is another than `names`."""
    try:
        pairs = parse_qsl(request.environ["QUERY_STRING"], keep_blank_values=True, errors="strict", max_num_fields=8)
    except ValueError as error:  # too many, or not UTF-8
        raise WebError("bad_request", f"the query cannot be read: {error}") from error
    found = dict(pairs)
    for name in found:
        if name not in names:
            close = get_close_matches(name[:64], names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(names) or 'none'} here"
            raise WebError("bad_request", f"the query parameter {name[:64]!r} is unknown; {hint}")
    if len(found) < len(pairs):
        raise WebError("bad_request", "a query parameter stands there twice; give it once")
    return found


def json_response(value: object) -> HTTPResponse:
    """A document as an answer that nobody keeps."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return HTTPResponse(to_json(value), 200, headers)
