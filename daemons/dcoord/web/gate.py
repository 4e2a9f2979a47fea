"""The gate of a port: which request goes on, as whom, and what becomes of those under way when somebody is revoked.

Owns the order of the questions (is there such a route, who asks, may it) and the answers to those who may not.
An ASGI application around another; must not know what a route does.
"""

import time
from typing import Final, Protocol

from dcoord.core.grants import Grant
from dcoord.web import rights
from dcoord.web.askers import Askers
from dcoord.web.bundle_parts import BundleParts
from dcoord.web.guard import send_problem
from dcoord.web.http1 import App, Receive, Scope, Send
from dcoord.web.problems import WebError
from dcoord.web.rights import ALLOWED, Allowed, Asker, Route, Table
from dcoord.web.trust import Trust

SESSION: Final = "SESSION"


class Connection(Protocol):
    """What is needed of a connection."""

    is_known: bool

    def cut(self) -> None:
        """End it now."""


class PlainGate:
    """The plain port's: anybody may ask, for what is meant for anybody."""

    def __init__(self, app: App, *, is_public: bool) -> None:
        self._app = app
        self._table = Table(is_plain=True)
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or have it answered."""
        try:
            route = self._table.route(scope["method"], scope["path"])
            if route.plain == "public" and not self._is_public:
                raise WebError(
                    "closed", "the page of this port is closed by web.public in dcoord.yaml; use the data port: dctl ui"
                )
        except WebError as error:
            await refuse(send, error)
            return
        scope[ALLOWED] = Allowed()
        await self._app(scope, receive, send)


class DataGate:
    """The data port's: who asks is found out for each request."""

    def __init__(self, app: App, trust: Trust, parts: BundleParts, *, is_public: bool) -> None:
        self._app = app
        self._trust = trust
        self._parts = parts
        self._is_public = is_public
        self._table = Table(is_plain=False)
        self._askers = Askers(trust)
        self._under_way: dict[object, tuple[str, Connection]] = {}
        trust.watch(self._cut_refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or have it answered."""
        connection: Connection = scope["connection"]
        key = object()
        try:
            route = self._table.route(scope["method"], scope["path"])
            asker = self._askers.asker(scope, time.time())
            self._under_way[key] = asker.principal.identity, connection
            scope[ALLOWED] = await self._allow(route, asker, scope["method"], scope["path"])
            connection.is_known = True
            await self._app(scope, receive, send)
        except WebError as error:
            await refuse(send, error)
        finally:
            self._under_way.pop(key, None)

    async def _allow(self, route: Route, asker: Asker, method: str, path: str) -> Allowed:
        grant = asker.grant
        if grant is None or grant.verb == SESSION:
            return rights.allow(route, asker, is_public=self._is_public)
        if rights.covers(grant, method, path) or await self._is_part(grant, method, path):
            return Allowed(grant.user)
        raise WebError("not_allowed", f"this grant is for {grant.verb} {grant.path}, not for {method:.20} {path:.100}")

    async def _is_part(self, grant: Grant, method: str, path: str) -> bool:
        bundle = rights.bundle_of(grant, method)
        return bool(bundle) and await self._parts.has(bundle, path.removeprefix(rights.BLOBS))

    def _cut_refused(self) -> None:
        """Revoked means now: what is under way ends too."""
        for identity, connection in list(self._under_way.values()):
            if identity in self._trust.refused:
                connection.cut()


async def refuse(send: Send, error: WebError) -> None:
    """Answer with a refusal, and with the headers that belong to its status."""
    extra: list[tuple[bytes, bytes]] = []
    if error.allow:
        extra.append((b"allow", error.allow.encode()))
    if error.code == "not_authenticated":
        extra.append((b"www-authenticate", b'Bearer realm="districomp"'))
    await send_problem(send, error, extra)
