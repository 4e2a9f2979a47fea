"""WSGI behind ASGI: runs the Bottle application in a small pool of threads.

Owns the translation of one request and its answer, and the bound on how many wait for a thread. No thread ever
waits for a peer: a body, where there may be one, is whole before the application is called (`wsgi.input` is a
BytesIO of it), and a FileSlice as an answer is sent by the event loop.
"""

import asyncio
import io
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, Final

from dcoord.web.files import FileSlice, send_slice
from dcoord.web.guard import send_problem
from dcoord.web.http1 import Receive, Scope, Send
from dcoord.web.json_bodies import JsonBodies
from dcoord.web.problems import WebError
from dcoord.web.rights import ALLOWED

WAITING_MAX: Final = 128

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | FileSlice]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes | FileSlice]


class WsgiBridge:
    """An ASGI application around a WSGI one. `pool` gives the threads; at most WAITING_MAX requests wait for one.

    Without `bodies` no body is read: the application sees an empty one.
    """

    def __init__(self, app: WsgiApp, pool: Executor, files: Executor, bodies: JsonBodies | None = None) -> None:
        self._app = app
        self._pool = pool
        self._files = files
        self._bodies = bodies
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._under_way >= WAITING_MAX:
            await send_problem(send, WebError("busy", "too many requests wait; try again in a moment"))
            return
        self._under_way += 1
        try:
            status, headers, body = await self._run(scope, receive)
        except WebError as error:
            await send_problem(send, error)
            return
        finally:
            self._under_way -= 1
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if isinstance(body, FileSlice):
            await send_slice(send, body, self._files)
        else:
            await send({"type": "http.response.body", "body": body})

    async def _run(self, scope: Scope, receive: Receive) -> Answer:
        loop = asyncio.get_running_loop()
        if self._bodies is None:
            return await loop.run_in_executor(self._pool, _call, self._app, _environ(scope, b""))
        async with self._bodies.whole(scope, receive) as body:
            return await loop.run_in_executor(self._pool, _call, self._app, _environ(scope, body))


def _call(app: WsgiApp, environ: dict[str, Any]) -> Answer:
    """Run the application in this thread; the answer whole, or a FileSlice."""
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        started[:] = [
            int(status[:3]),
            [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        ]

    result = app(environ, start_response)
    body = result if isinstance(result, FileSlice) else b"".join(result)
    return started[0], started[1], body


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """PEP 3333's dictionary of a request."""
    server = scope["server"] or ("", 0)
    client = scope["client"] or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": _keep_slice,
    }
    environ[ALLOWED] = scope[ALLOWED]
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        # A name with "_" would be taken for its namesake with "-": it is nobody's header here.
        if b"_" in raw_name or name in ("CONTENT_LENGTH", "CONTENT_TYPE") or not _is_text(raw_value):
            continue
        key = f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _is_text(value: bytes) -> bool:
    """Whether Bottle can read it: all text is UTF-8 to it. Nothing that we understand is anything else."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _keep_slice(body: FileSlice, _block_bytes: int = 0) -> FileSlice:
    return body
