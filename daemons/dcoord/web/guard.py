"""What holds for every request of every port: by which names we may be asked, who may write, which headers leave.

Owns the Host allow-list (against DNS rebinding), the Origin check on writes (against other sites' pages), and the
security headers. Must not know single routes, nor who asks.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final

from dcoord.web.http1 import App, Event, Receive, Scope, Send
from dcoord.web.problems import WebError, problem_body
from dcoord.web.trust import Trust
from districomp.addresses import plain_host

_READING: Final = frozenset({"GET", "HEAD"})
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")

SECURITY_HEADERS: Final = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class Hosts:
    """The names by which this server may be asked: loopback, where it is reached, what the setting adds.

    Reachable from other machines, it has this machine's names too. `trust` knows the coordinator's own.
    """

    def __init__(self, bound: str, configured: Iterable[str], trust: Trust) -> None:
        self._names = {"localhost", _bare(bound), *(_bare(name) for name in configured)}
        if not _is_loopback(bound):
            name = _bare(socket.gethostname())
            first = name.partition(".")[0]
            self._names |= {name, first, f"{first}.local"}
        self._trust = trust

    def allow(self, host: str, reached: str) -> bool:
        """Whether a Host header is one of ours. `reached`: the address at which the connection reached us.

        Its port does not matter, as rebinding cannot choose the name.
        """
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = _bare(match["name"])
        return name in self._names or name in self._trust.server_names or name == _bare(reached) or _is_loopback(name)


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a bad request ourselves, else hand it on; add the security headers either way."""

        async def send_guarded(event: Event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), *SECURITY_HEADERS]
            await send(event)

        try:
            self._check(scope)
        except WebError as error:
            await send_problem(send_guarded, error)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            raise WebError("bad_request", "a request must have exactly one Host header")
        host = hosts[0].decode("latin-1")
        server = scope["server"]
        if not self._hosts.allow(host, server[0] if server else ""):
            raise WebError(
                "bad_host",
                f"this server is not asked for as {host!r:.100}; use its address, or add the name to web.hosts"
                " in dcoord.yaml",
            )
        if scope["method"] not in _READING:
            _check_origin(scope, host)


async def send_problem(send: Send, error: WebError, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer with an error's status and JSON body."""
    body = problem_body(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", b"%d" % len(body)),
        *extra,
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check_origin(scope: Scope, host: str) -> None:
    """A browser names the site whose page makes it write; programs name none."""
    own = f"{scope['scheme']}://{host.lower()}"
    for name, value in scope["headers"]:
        origin = value.decode("latin-1")
        if name == b"origin" and origin.lower() != own:
            raise WebError("bad_origin", f"a page of {origin!r:.100} may not write here; only this server's own may")


def _bare(name: str) -> str:
    """A name or address without brackets and closing dot; an IPv4 address without its IPv6 clothes."""
    return plain_host(name.strip("[]").rstrip(".").lower())


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(_bare(name)).is_loopback
    except ValueError:
        return False
