"""The data port's routes as an OpenAPI 3.1 description: `/api/v1/openapi.json`, committed as docs/openapi.json.

Owns what the description says of each route. The documents' shapes are taken from the Structs that the routes
answer with, so that they cannot differ. `docs/http.md` explains more.
"""

from typing import Any, Final, NamedTuple

import msgspec

import districomp
from dcoord.web.problems import STATUS, Problem
from dcoord.web.statistics import Statistics
from dcoord.web.submission import FORMS, Created, Submission
from districomp import documents
from districomp.model import STATE_NAMES

Schema = dict[str, Any]

_REFERENCE: Final = "#/components/schemas/{name}"
_PLACES: Final[dict[str, Schema]] = {
    "job": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    "task": {"type": "string", "pattern": r"^[1-9][0-9]{0,8}\.(0|[1-9][0-9]{0,8})$", "examples": ["42.7"]},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"},
    "state": {"enum": list(STATE_NAMES)},
}
_ALWAYS: Final = ("bad_request", "bad_host", "not_authenticated", "not_allowed", "revoked")
_SECURITY: Final[dict[str, Schema]] = {
    "grant": {
        "type": "http",
        "scheme": "bearer",
        "description": "A grant of the coordinator's, asked for on the control port: for one object, or a session.",
    },
    "certificate": {"type": "mutualTLS", "description": "A certificate of this cluster, as `dctl join` gets one."},
}
_ASKS: Final = ("unreachable", "degraded", "busy")
_READS: Final = ("journal", "busy", "range")


class Route(NamedTuple):
    """A route: `answers` is what a success sends (a Struct, a list of one, or bytes), `errors` the codes of problems."""

    name: str
    method: str
    path: str
    summary: str
    answers: Any
    errors: tuple[str, ...] = ()
    takes: Any = None
    status: int = 200
    query: tuple[str, ...] = ()


ROUTES: Final = (
    Route("status", "get", "/api/v1/status", "The cluster in figures", documents.StatusDocument, _ASKS),
    Route("jobs", "get", "/api/v1/jobs", "All jobs", list[documents.JobDocument], _ASKS),
    Route("submit", "post", "/api/v1/jobs", "Submit a job; it is on disk when this is answered", Created,
        ("bad_params", "bad_origin", "unknown_definition", "request_timeout", "too_large", "bad_content_type", "empty",
         *_ASKS, "no_space"),
        takes=Submission, status=201,
    ),
    Route("job", "get", "/api/v1/jobs/{job}", "A job", documents.JobDocument, ("unknown_job", *_ASKS)),
    Route("job_tasks", "get", "/api/v1/jobs/{job}/tasks", "A job's tasks, at most 10,000", list[documents.TaskDocument],
        ("unknown_job", "too_many", "too_large", *_ASKS), query=("state",),
    ),
    Route("task", "get", "/api/v1/tasks/{task}", "A task with its attempts", documents.TaskDocument,
          ("unknown_job", "unknown_task", *_ASKS)),
    Route("explain", "get", "/api/v1/tasks/{task}/explain", "Why a task is where it is", documents.ExplainDocument,
          ("unknown_job", "unknown_task", *_ASKS)),
    Route("workers", "get", "/api/v1/workers", "All workers", list[documents.WorkerDocument], _ASKS),
    Route("definitions", "get", "/api/v1/definitions", "What can be submitted", list[documents.DefinitionDocument], _ASKS),
    Route("definition", "get", "/api/v1/definitions/{name}", "A live definition, whole", documents.DefinitionShowDocument,
          ("unknown_definition", *_ASKS)),
    Route("description", "get", "/api/v1/openapi.json", "This description", dict),
    Route("task_data", "get", "/tasks/{task}", "The bytes that a task gets", bytes, ("unknown_task", "blob_missing", *_READS)),
    Route("result", "get", "/results/{task}", "The result of a task that is done", bytes,
          ("unknown_task", "no_result", "blob_missing", *_READS)),
    Route("blob", "get", "/blobs/{sha256}", "A payload above 64 KiB", bytes, ("blob_missing", "range")),
    Route("store_blob", "put", "/blobs/{sha256}", "Store a payload: 201 if it is new, 200 if it was there", None,
          ("bad_origin", "not_found", "digest_mismatch", "no_space"), takes=bytes, status=201),
    Route("statistics", "get", "/stats.json", "The statistics page's numbers", Statistics, ("busy",)),
)  # fmt: skip


def render() -> bytes:
    """The description in JSON."""
    return msgspec.json.format(msgspec.json.encode(description()), indent=2) + b"\n"


def description() -> Schema:
    """The description."""
    types = [kind for route in ROUTES for kind in (route.answers, route.takes) if kind not in (None, bytes, dict)]
    _, schemas = msgspec.json.schema_components([*types, Problem], ref_template=_REFERENCE)
    submission = schemas["Submission"]
    submission["not"] = {"anyOf": [{"required": [a, b]} for i, a in enumerate(FORMS) for b in FORMS[i + 1 :]]}
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "districomp",
            "version": districomp.__version__,
            "summary": "The data port of a districomp coordinator",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{name: []} for name in _SECURITY],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": _SECURITY},
    }


def _operation(route: Route) -> Schema:
    responses: Schema = {str(route.status): _answer(route)}
    if route.method == "put":
        responses["200"] = {"description": "It was there already"}
    if route.answers is bytes:
        responses |= {"206": _answer(route), "304": {"description": "If-None-Match names it"}}
    responses |= _problems((*_ALWAYS, *route.errors))
    operation: Schema = {"summary": route.summary, "operationId": route.name, "responses": responses}
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [_parameter(name, "path") for name in names] + [_parameter(name, "query") for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.takes)}
    return operation


def _parameter(name: str, place: str) -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": _PLACES[name]}


def _answer(route: Route) -> Schema:
    answer: Schema = {"description": route.summary}
    if route.answers is not None:
        answer["content"] = _content(route.answers)
    if route.answers is Created:
        answer["headers"] = {"Location": {"description": "The job's path", "schema": {"type": "string"}}}
        answer["links"] = {
            operation: {"operationId": operation, "parameters": {"job": "$response.body#/job"}}
            for operation in ("job", "job_tasks")
        }
    return answer


def _content(kind: Any) -> Schema:
    if kind is bytes:
        return {"application/octet-stream": {}}
    if kind is dict:
        return {"application/json": {"schema": {"type": "object"}}}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    return {"application/json": {"schema": schema}}


def _problems(codes: tuple[str, ...]) -> Schema:
    """The responses of errors by status, each with its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(code)
    return {
        str(status): {"description": ", ".join(f"`{code}`" for code in names), "content": _content(Problem)}
        for status, names in sorted(by_status.items())
    }
