"""The servers that `bench/web.py` compares ours with, each run inside a process and event loop of ours.

The application is the same for all. What a server lacks and can be given from outside is given here, so that its
cost is measured too: see the class of each.
"""

import asyncio
import importlib
import socket
from typing import Any, Final

from dcoord.web.http1 import App, Event, Scope

HEAD_S: Final = 10.0
IDLE_S: Final = 75.0


async def granian_embedded(app: App, port: int, ended: asyncio.Event) -> None:
    """granian's server in this event loop."""
    embedded = _module("granian.server.embed").Server
    server = embedded(app, port=port, interface="asginl", websockets=False, backlog=1024)
    task = asyncio.create_task(server.serve())
    await ended.wait()
    server.stop()
    await task


async def hypercorn(app: App, port: int, ended: asyncio.Event) -> None:
    """hypercorn's."""
    serving, configuration = _module("hypercorn.asyncio"), _module("hypercorn.config")
    config = configuration.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.keep_alive_max_requests = 1 << 30
    await serving.serve(app, config, shutdown_trigger=ended.wait)


# ---- aiohttp ----


async def aiohttp(app: App, port: int, ended: asyncio.Event) -> None:
    """aiohttp.web's low-level server: a runner, any number of sites, each on a socket that we bind."""
    web = _module("aiohttp.web")
    handler = AiohttpHandler(app, web)
    # One deadline for a request's head and for the silence before it: aiohttp has no other.
    server = web.Server(handler, access_log=None, keepalive_timeout=HEAD_S, lingering_time=2.0, max_line_size=2048)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.SockSite(runner, _bound(port), shutdown_timeout=5.0, backlog=512).start()
    await ended.wait()
    await runner.cleanup()


class AiohttpHandler:
    """An ASGI application as aiohttp's handler: bodies streamed both ways, with a limit on a stalled reader."""

    def __init__(self, app: App, web: Any) -> None:
        self._app = app
        self._web = web

    async def __call__(self, request: Any) -> Any:
        """Answer one request."""
        response = None

        async def receive() -> Event:
            async with asyncio.timeout(30):
                body = await request.content.readany()
            return {"type": "http.request", "body": body, "more_body": not request.content.at_eof()}

        async def send(event: Event) -> None:
            nonlocal response
            if event["type"] == "http.response.start":
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event["headers"]]
                response = self._web.StreamResponse(status=event["status"], headers=headers)
                return
            assert response is not None
            if not response.prepared:
                if not event.get("more_body", False) and response.content_length is None:
                    response.content_length = len(event["body"])
                await response.prepare(request)
            async with asyncio.timeout(60):
                await response.write(event["body"])

        await self._app(self._scope(request), receive, send)
        return response

    def _scope(self, request: Any) -> Scope:
        transport = request.transport
        return {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": request.raw_path.partition("?")[0],
            "query_string": request.query_string.encode(),
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": transport.get_extra_info("peername"),
            "server": transport.get_extra_info("sockname"),
            # What roles would be read from.
            "certificate": transport.get_extra_info("peercert"),
        }


# ---- uvicorn ----


async def uvicorn_guarded(app: App, port: int, ended: asyncio.Event) -> None:
    """uvicorn's HTTP protocol on a listener of ours, with a deadline for heads: what a subclass of 30 lines can give it."""
    uvicorn, state = _module("uvicorn"), _module("uvicorn.server").ServerState()
    config = uvicorn.Config(
        app, ws="none", lifespan="off", access_log=False, log_config=None, timeout_keep_alive=IDLE_S
    )
    config.load()
    protocol = _guarded(_module("uvicorn.protocols.http.httptools_impl").HttpToolsProtocol)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), sock=_bound(port), backlog=512)
    await ended.wait()
    server.close()
    for connection in list(state.connections):
        connection.shutdown()


def _guarded(base: Any) -> Any:
    class Guarded(base):  # type: ignore[misc]
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.deadline = self.loop.call_later(HEAD_S, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_time()
            self.deadline = self.loop.call_later(HEAD_S, self.transport.abort)
            self.scope["certificate"] = self.transport.get_extra_info("peercert")

        def on_headers_complete(self) -> None:
            self._in_time()
            super().on_headers_complete()

        def _in_time(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

    return Guarded


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    return listening


def _module(name: str) -> Any:
    """A server's module: not installed where nobody compares servers, and not typed by us."""
    return importlib.import_module(name)
