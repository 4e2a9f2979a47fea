"""One HTTP/1.1 connection: bytes in, an ASGI application's answers out.

Owns framing, keep-alive, pipelining, back pressure in both directions and the deadlines of a slow peer, over TLS
as over plain TCP. The parsing itself is llhttp's (httptools). Must not know any route, who a certificate's holder is,
nor what a body means; a body is never held beyond BODY_BYTES_AHEAD and never written to disk here.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple, Protocol, cast

import httptools

from dcoord.web.exchange import REASONS, Exchange

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TARGET_BYTES_MAX: Final = 2048
HEAD_BYTES_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 64
PIPELINED_MAX: Final = 8
BODY_BYTES_AHEAD: Final = 1024 * 1024
"""What is taken of a request's body before the application asks for it."""
WRITE_BYTES_AHEAD: Final = 256 * 1024
JOINED_BYTES_MAX: Final = 8 * 1024
"""A body up to this goes with its head: one packet, and one record of TLS."""

GOODBYE_S: Final = 0.25
"""A peer has so long to end an idle connection together with us; TLS waits for it."""
QUIET_S: Final = 0.5
"""Who has been refused and sends nothing for so long has read why."""

NEVER: Final = float("inf")


class Deadlines(NamedTuple):
    """How long a peer may take, in seconds.

    `head_s`: for a request's head, from the connection or the head's first byte on; `idle_s`: between two requests;
    `body_s`: between two pieces of a body; `write_s`: to take WRITE_BYTES_AHEAD of an answer; `linger_s`: to read a
    last answer while it still sends.
    """

    head_s: float = 10.0
    idle_s: float = 75.0
    body_s: float = 30.0
    write_s: float = 60.0
    linger_s: float = 2.0


class Owner(Protocol):
    """What a connection needs of its listener."""

    app: App
    scheme: str
    deadlines: Deadlines

    def opened(self, connection: "HttpConnection") -> bool:
        """Take note of a new connection; False: there are too many."""

    def closed(self, connection: "HttpConnection") -> None:
        """It is gone."""

    def date(self) -> bytes:
        """The `Date` header's value."""


class PeerGoneError(ConnectionError):
    """There is nobody to answer any more; raised out of `send`, and by applications that find it out."""


class _RefusedError(Exception):
    """The request cannot be answered by the application; the connection ends with this status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpConnection(asyncio.Protocol):
    """An accepted connection. `deadline` (event loop's time) is when the listener may cut it; NEVER while it is in order."""

    def __init__(self, owner: Owner) -> None:
        self.deadline = NEVER
        self.certificate: dict[str, Any] | None = None
        """The peer's, as OpenSSL has verified it; None if it showed none."""
        self.is_known = False
        """Whether a request of it was let in; the application says so."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming: Exchange | None = None
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._refused = False
        self._lingering = False
        self._stopping = False
        self._is_quiet = True
        self._is_tls = False

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered: it may be cut without harm."""
        return self._current is None

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: accepted."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BYTES_AHEAD)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        self.certificate = transport.get_extra_info("peercert") or None
        self.deadline = self._loop.time() + self._owner.deadlines.head_s
        if not self._owner.opened(self):
            self._refuse(503, "too many connections are open; try again later")

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes."""
        if self._refused or self._lingering or self._transport is None:
            self._is_quiet = False
            return
        if self.is_idle and self._incoming is None:
            self.deadline = self._loop.time() + self._owner.deadlines.head_s
        try:
            self._parser.feed_data(data)
            self._limit_head(len(data))
        except httptools.HttpParserUpgrade:
            # An upgrade is an offer that may be ignored; what follows belongs to nothing.
            self._last_request().keep_alive = False
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__ if isinstance(error.__context__, _RefusedError) else None
            self._refuse(refused.status if refused else 400, str(refused or error))
        except _RefusedError as error:
            self._refuse(error.status, str(error))
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is not HTTP/1.1: {error}")
        self._govern_reading()

    def eof_received(self) -> bool:
        """asyncio: the peer sends no more; it may still take its answer, which TLS does not know."""
        if self._is_tls or self._incoming is not None or self._current is None:
            return False
        (self._waiting[-1] if self._waiting else self._current).keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: gone."""
        self._transport = None
        self._arrived.set()
        self._writable.set()
        self._waiting.clear()
        self._owner.closed(self)

    def pause_writing(self) -> None:
        """asyncio: the peer takes its bytes more slowly than they come."""
        self._writable.clear()
        self.deadline = self._loop.time() + self._owner.deadlines.write_s

    def resume_writing(self) -> None:
        """asyncio: it has caught up."""
        self._writable.set()
        self.deadline = NEVER if self._current is not None else self._loop.time() + self._owner.deadlines.idle_s

    # ---- the parser's side ----

    def on_message_begin(self) -> None:
        """llhttp: a request begins."""
        self._incoming = Exchange()

    def on_url(self, url: bytes) -> None:
        """llhttp: (more of) the target."""
        request = self._head_of_request()
        request.target += url
        if len(request.target) > TARGET_BYTES_MAX:
            raise _RefusedError(414, f"the request's target is over {TARGET_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a whole header."""
        request = self._head_of_request()
        request.head_bytes += len(name) + len(value)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            request.expects_continue = True
        request.headers.append((name, value))
        if len(request.headers) > HEADERS_MAX or request.head_bytes > HEAD_BYTES_MAX:
            raise _RefusedError(431, f"a request's head may have {HEADERS_MAX} headers and {HEAD_BYTES_MAX} bytes")

    def on_headers_complete(self) -> None:
        """llhttp: the head is whole; the request can be answered from now on."""
        request = self._head_of_request()
        request.method = self._parser.get_method().decode("ascii")
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        if not request.target.startswith(b"/"):
            raise _RefusedError(400, "the request's target must begin with /")
        if len(self._waiting) >= PIPELINED_MAX:
            raise _RefusedError(400, f"more than {PIPELINED_MAX} requests were sent ahead")
        self._waiting.append(request)
        self.deadline = NEVER
        self._begin_next()

    def on_body(self, body: bytes) -> None:
        """llhttp: bytes of the body."""
        request = self._last_request()
        request.body.append(body)
        request.body_bytes += len(body)
        if request is self._current:
            self._arrived.set()

    def on_message_complete(self) -> None:
        """llhttp: the request is whole."""
        request = self._last_request()
        request.complete = True
        self._incoming = None
        if request is self._current:
            self._arrived.set()

    # ---- the listener's side ----

    def cut(self) -> None:
        """End the connection now, whatever it is doing."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """End an idle connection now; the peer hears of it if it listens."""
        self.deadline = NEVER
        if self._transport is not None:
            self._transport.close()
            self._loop.call_later(GOODBYE_S, self.cut)

    def expire(self) -> None:
        """Its deadline has passed: the peer is silent, slow or stalled."""
        if self._current is not None:
            self.cut()
        elif self._incoming is not None:
            self._refuse(408, f"the request's head did not arrive within {self._owner.deadlines.head_s:g} s")
        else:
            self.end()

    def stop(self) -> None:
        """End the connection once the request in hand is answered."""
        self._stopping = True
        if self._current is None:
            self.end()

    # ---- one request ----

    def _begin_next(self) -> None:
        if self._current is None and self._waiting and self._transport is not None:
            self._current = self._waiting.popleft()
            self._arrived.set()
            self._task = self._loop.create_task(self._answer(self._current))

    async def _answer(self, request: Exchange) -> None:
        async def receive() -> Event:
            return await self._receive(request)

        async def send(event: Event) -> None:
            await self._send(request, event)

        try:
            await self._owner.app(self._scope(request), receive, send)
            if not request.answered and self._transport is not None:
                raise RuntimeError("the application ended without an answer")
        except PeerGoneError:
            log.debug("the peer of %s %r went away before its answer", request.method, request.target)
        except Exception:  # the connection's own boundary: our bug costs this request only
            log.exception("answering %s %r failed", request.method, request.target)
            if request.head_sent:
                self.cut()
            else:
                self._refuse(500, "this is a bug of dcoord-web; its log has the details")
        finally:
            self._finish(request)

    def _finish(self, request: Exchange) -> None:
        self._task = None
        self._current = None
        transport = self._transport
        if transport is None or self._refused:
            return
        if not request.complete or not request.keep_alive or self._stopping:
            self._linger() if not request.complete else self._close(transport)
            return
        if self._writable.is_set():
            self.deadline = self._loop.time() + self._owner.deadlines.idle_s
        self._begin_next()
        self._govern_reading()

    def _scope(self, request: Exchange) -> Scope:
        path, _, query = request.target.partition(b"?")
        transport = self._transport
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.version,
            "method": request.method,
            "scheme": self._owner.scheme,
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": transport.get_extra_info("peername") if transport else None,
            "server": transport.get_extra_info("sockname") if transport else None,
            "connection": self,
        }

    async def _receive(self, request: Exchange) -> Event:
        if request.expects_continue and not request.head_sent and self._transport is not None:
            request.expects_continue = False
            if not request.complete and not request.body:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not request.body and not request.complete and self._transport is not None:
            self._arrived.clear()
            self.deadline = self._loop.time() + self._owner.deadlines.body_s
            await self._arrived.wait()
        self.deadline = NEVER
        if self._transport is None:
            return {"type": "http.disconnect"}
        body = b"".join(request.body)
        request.body.clear()
        request.body_bytes = 0
        self._govern_reading()
        return {"type": "http.request", "body": body, "more_body": not request.complete}

    async def _send(self, request: Exchange, event: Event) -> None:
        if event["type"] == "http.response.start":
            request.status = event["status"]
            request.answer_headers = list(event.get("headers", ()))
            return
        body: bytes = event.get("body", b"")
        more = event.get("more_body", False)
        head = b""
        if not request.head_sent:
            head = request.answer_head(None if more else len(body), self._owner.date(), is_last=self._stopping)
        if request.has_no_answer_body:
            body = b""
        elif request.left_bytes is not None:
            request.left_bytes -= len(body)
            if request.left_bytes < 0 or (not more and request.left_bytes):
                raise RuntimeError(f"the answer's body is {-request.left_bytes} bytes longer than its Content-Length")
        elif request.chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        request.answered = not more
        transport = self._transport
        if transport is None or transport.is_closing() or self._lingering:
            # Gone, or told already (too slow, malformed) that it gets no other answer than that.
            raise PeerGoneError
        if head and len(body) > JOINED_BYTES_MAX:
            transport.writelines((head, body))
        elif head or body:
            transport.write(head + body)
        if not self._writable.is_set():
            await self._writable.wait()

    # ---- ends and limits ----

    def _head_of_request(self) -> Exchange:
        assert self._incoming is not None, "llhttp begins a message before its parts"
        return self._incoming

    def _last_request(self) -> Exchange:
        request = self._incoming or (self._waiting[-1] if self._waiting else self._current)
        assert request is not None
        return request

    def _limit_head(self, fed_bytes: int) -> None:
        """Bound what llhttp and httptools gather of a head that never becomes whole."""
        request = self._incoming
        if request is not None and not request.method:
            request.head_bytes += fed_bytes
            if request.head_bytes > HEAD_BYTES_MAX:
                raise _RefusedError(431, f"a request's head may have {HEAD_BYTES_MAX} bytes")

    def _govern_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._lingering:
            return
        ahead = self._incoming.body_bytes if self._incoming is not None else 0
        wanted = ahead < BODY_BYTES_AHEAD and len(self._waiting) < PIPELINED_MAX // 2
        if wanted and not transport.is_reading():
            transport.resume_reading()
        elif not wanted and transport.is_reading():
            transport.pause_reading()

    def _refuse(self, status: int, text: str) -> None:
        """Answer what never reaches the application, and end the connection."""
        transport = self._transport
        if transport is None or self._refused or self._lingering:
            return
        self._refused = True
        if self._current is None or not self._current.head_sent:
            message = text.replace("\\", "/").replace('"', "'").encode("ascii", "replace")
            body = b'{"error": "%b", "message": "%b"}\n' % (_code(status), message)
            transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b"
                % (status, REASONS[status].encode(), len(body), body)
            )
        self._linger()

    def _linger(self) -> None:
        """Close so that a peer that is still sending can read its answer: our end first, theirs a little later.

        TLS has no end of its own for each side: ours comes when the peer had time to read.
        """
        transport = self._transport
        if transport is None or self._lingering:
            return
        self._lingering = True
        # Timers of its own: a connection beyond the cap is in no list of the listener's.
        self.deadline = NEVER
        self._linger_on(self._loop.time() + self._owner.deadlines.linger_s)
        if not transport.is_reading():
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()

    def _linger_on(self, until: float) -> None:
        self._is_quiet = True

        def look() -> None:
            if self._is_quiet or self._loop.time() >= until:
                self.end()
            else:
                self._linger_on(until)

        self._loop.call_later(min(QUIET_S, self._owner.deadlines.linger_s), look)

    def _close(self, transport: asyncio.Transport) -> None:
        """Close after the last answer. TLS waits for the peer's own goodbye: not for ever."""
        self.deadline = self._loop.time() + self._owner.deadlines.write_s
        transport.close()


def _code(status: int) -> bytes:
    return REASONS[status].lower().replace(" ", "_").encode()
