"""Who may do what at which route: one table for both ports, the only place where that is decided.

Owns which paths exist at all and what each needs. Pure. Who asks has been found out before (`askers`); whose a job
is, is looked at where the job is, for those who may see only their own.
"""

import re
from typing import Final, NamedTuple

from dcoord.core.grants import Grant
from dcoord.core.rights import Principal
from dcoord.web.problems import WebError

ALLOWED: Final = "districomp.allowed"
"""Where the scope, and WSGI's environment, has the Allowed of a request."""
BUNDLES: Final = "/bundles/"
BLOBS: Final = "/blobs/"


class Route(NamedTuple):
    """A method and a path. `need`: of whoever asks at the data port, a key of WHO. `plain`: whether the plain port has it.

    GET stands for HEAD too, where HEAD has no row of its own. `plain`: '' no, 'public' as web.public says, 'always'.
    """

    method: str
    path: str
    need: str
    plain: str = ""


class Asker(NamedTuple):
    """Who asks, and the grant that it showed, if it did."""

    principal: Principal
    grant: Grant | None = None


class Allowed(NamedTuple):
    """What an allowed request goes on with. `user`: who owns what it submits; `only`: whose things alone it sees, '' all."""

    user: str = ""
    only: str = ""


WHO: Final[dict[str, frozenset[str]]] = {
    # Whether the cluster lives, and in what state it is.
    "status": frozenset(("worker", "submit", "read", "admin")),
    # What is the same for everybody: the page's own files, what can be submitted, and how.
    "look": frozenset(("submit", "read", "admin")),
    # Names of all jobs and workers. Where the plain port shows the page to anybody, `submit` may see it here too.
    "page": frozenset(("read", "admin")),
    # Jobs: `submit` its own.
    "jobs": frozenset(("submit", "read", "admin")),
    # What belongs to nobody or may be anybody's.
    "read": frozenset(("read", "admin")),
    "submit": frozenset(("submit", "admin")),
}

ROUTES: Final = (
    Route("GET", "/healthz", "status", "always"),
    Route("GET", "/", "page", "public"),
    Route("GET", "/stats.json", "page", "public"),
    Route("GET", "/static/{name}", "look", "public"),
    Route("GET", "/favicon.ico", "look", "public"),
    Route("GET", "/tasks/{task}", "jobs"),
    Route("GET", "/results/{task}", "jobs"),
    Route("GET", "/blobs/{sha256}", "read"),
    Route("HEAD", "/blobs/{sha256}", "look"),
    Route("PUT", "/blobs/{sha256}", "submit"),
    Route("GET", "/api/v1/status", "status"),
    Route("GET", "/api/v1/jobs", "jobs"),
    Route("POST", "/api/v1/jobs", "submit"),
    Route("GET", "/api/v1/jobs/{job}", "jobs"),
    Route("GET", "/api/v1/jobs/{job}/tasks", "jobs"),
    Route("GET", "/api/v1/tasks/{task}", "jobs"),
    Route("GET", "/api/v1/tasks/{task}/explain", "jobs"),
    Route("GET", "/api/v1/workers", "read"),
    Route("GET", "/api/v1/definitions", "look"),
    Route("GET", "/api/v1/definitions/{name}", "look"),
    Route("GET", "/api/v1/openapi.json", "look"),
)

# Nothing is percent-decoded. A parameter is never "." or "..", nor anything that a file system or shell understands.
_PARAMETER: Final = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]{1,255}"


class Table:
    """The routes of one port, by path and method."""

    def __init__(self, *, is_plain: bool) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[re.Pattern[str], dict[str, Route]] = {}
        for route in ROUTES:
            if is_plain and not route.plain:
                continue
            if "{" not in route.path:
                methods = self._exact.setdefault(route.path, {})
            else:
                pattern = re.compile(re.sub(r"\{\w+\}", lambda _: _PARAMETER, route.path))
                methods = self._patterns.setdefault(pattern, {})
            methods[route.method] = route

    def route(self, method: str, path: str) -> Route:
        """The row of a request. WebError `not_found`, or `bad_method` with the methods that there are."""
        methods = self._exact.get(path)
        if methods is None:
            found = (routes for pattern, routes in self._patterns.items() if pattern.fullmatch(path))
            methods = next(found, None)
        if methods is None:
            raise WebError(
                "not_found", f"there is nothing at {path!r:.100}; docs/http.md lists the routes of each port"
            )
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if route is None:
            allow = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise WebError("bad_method", f"this path has {allow}, not {method:.20}", allow=allow)
        return route


def allow(route: Route, asker: Asker, *, is_public: bool) -> Allowed:
    """What an asker may do at a route by its role. WebError `not_allowed`.

    is_public: the page is for anybody.
    """
    principal = asker.principal
    may = principal.role in WHO[route.need] or (route.need == "page" and is_public and principal.role in WHO["look"])
    if not may:
        raise WebError("not_allowed", f"role {principal.role} may not {_what(route)}; {_hint(principal.role)}")
    if principal.role != "submit":
        return Allowed(principal.user)
    if not principal.user:
        raise WebError("not_allowed", "this certificate names no user whose jobs these could be; enrol again")
    return Allowed(principal.user, principal.user)


def covers(grant: Grant, method: str, path: str) -> bool:
    """Whether a grant for one object is for this request, a bundle's files aside."""
    return _covers_method(grant, method) and grant.path == path


def bundle_of(grant: Grant, method: str) -> str:
    """The SHA-256 (hex) of the bundle that a blob has to be a part of for this request, '' if the grant is for none."""
    of_bundle = grant.path.startswith(BUNDLES) and _covers_method(grant, method)
    return grant.path.removeprefix(BUNDLES) if of_bundle else ""


def _covers_method(grant: Grant, method: str) -> bool:
    # Whoever may PUT learns by that whether it was there, and may ask before.
    return method == grant.verb or (method == "HEAD" and grant.verb in ("GET", "PUT"))


def _what(route: Route) -> str:
    return f"{'read' if route.method in ('GET', 'HEAD') else 'write'} {route.path} here"


def _hint(role: str) -> str:
    if role == "worker":
        return "a worker asks the coordinator for a grant, which comes with the lease"
    return "ask an admin for a token of another role: dctl token create ROLE"
