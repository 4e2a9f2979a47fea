"""The proxy of `dctl ui`: a browser of this machine on one side, the data port with this user's rights on the other.

Owns who may use it (a key that works once, then a cookie; no other site's page) and what passes through. Must not know
what the pages say. The browser never sees a grant, the data port never a cookie.
"""

import contextlib
import hmac
import http.client
import http.server
import secrets
import socket
import threading
import time
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from districomp.client import Client
from districomp.client_dataport import connection_to
from districomp.errors import DistricompError, UsageError

ADDRESS: Final = "127.0.0.1"
TIMEOUT_S: Final = 60.0
LINGER_S: Final = 10.0
"""So long a browser may go on sending what was refused, before it is cut off."""
CHUNK_BYTES: Final = 64 * 1024
CONNECTIONS_MAX: Final = 64
READING: Final = frozenset(("GET", "HEAD"))
PASSED_ON: Final = (
    "Accept", "Accept-Language", "Content-Type", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "Range",
)  # fmt: skip
"""What of a request reaches the data port. Not its Origin, which is checked here, nor its cookies."""
KEPT_BACK: Final = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade")
)
OWN_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


class Proxy:
    """Listens on loopback from its making on; `serve` until an exception (Ctrl-C). UsageError if the port is taken."""

    def __init__(self, client: Client, port: int) -> None:
        self._client = client
        self._key: str | None = secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self._grant = ""
        self._renew_at = 0.0
        try:
            self._server = _Server(self, port)
        except OSError as error:
            raise UsageError(
                f"the port {port} cannot be used here: {error.strerror}; choose another: --port N"
            ) from error
        self.port = self._server.server_port
        self.cookie_name = f"districomp_ui_{self.port}"
        self.hosts = (f"{ADDRESS}:{self.port}", f"localhost:{self.port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._server.server_close()

    def first_url(self) -> str:
        """The address that opens the pages, once."""
        return f"http://{ADDRESS}:{self.port}/?key={self._key}"

    def check(self) -> None:
        """Have the rights that the pages will need. NotAllowedError, or whatever else is wrong."""
        self.grant()

    def serve(self) -> None:
        """Answer requests."""
        self._server.serve_forever(poll_interval=0.1)

    def grant(self) -> str:
        """The right to do at the data port what this user may; '' if nobody is asked for a right there."""
        with self._lock:
            now = time.monotonic()
            if now >= self._renew_at:
                granted = self._client.grant("SESSION", "")
                self._grant = granted.grant
                self._renew_at = now + granted.expires_s * 2 / 3 if granted.grant else now + TIMEOUT_S
            return self._grant

    def forget_grant(self) -> None:
        """The data port does not take it: have another one for the next request."""
        with self._lock:
            self._renew_at = 0.0

    def upstream(self, *, anew: bool = False) -> http.client.HTTPConnection:
        """A connection to the data port. DistricompError if there is none."""
        place = self._client.data_place(anew)
        if not place.url:
            raise DistricompError("the coordinator has no web server running (yet)")
        return connection_to(place, TIMEOUT_S)

    def redeem(self, key: str) -> str | None:
        """The cookie for the key, which is worth nothing afterwards; None if it is not the key, or was."""
        with self._lock:
            if self._key is None or not hmac.compare_digest(key.encode(), self._key.encode()):
                return None
            self._key = None
            return self._cookie

    def knows(self, cookie: str | None) -> bool:
        """Whether it is the cookie."""
        return cookie is not None and hmac.compare_digest(cookie.encode(), self._cookie.encode())


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__((ADDRESS, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """As ThreadingHTTPServer, for so many connections at a time."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As ThreadingHTTPServer."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is nothing to tell anybody."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    server: _Server

    def finish(self) -> None:
        """As StreamRequestHandler, but our end first: who is still sending could not read the answer after a reset."""
        super().finish()
        until = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left_s := until - time.monotonic()) > 0:
                self.connection.settimeout(left_s)
                if not self.connection.recv(CHUNK_BYTES):
                    break

    def log_message(self, *_arguments: Any) -> None:
        """Nothing: the key would be in it."""

    def version_string(self) -> str:
        """What we are is nobody's business."""
        return "districomp"

    def do_GET(self) -> None:
        """Any method ends up here: see `_answer`."""
        self._answer()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self) -> None:
        proxy = self.server.proxy
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in proxy.hosts:
            # Another name that leads here is another site's (DNS rebinding).
            self._say(403, "This is not asked for by that name.")
            return
        query = parse_qs(urlsplit(self.path).query)
        if self.command == "GET" and urlsplit(self.path).path == "/" and "key" in query:
            self._let_in(query["key"][-1])
            return
        if not proxy.knows(self._cookie()):
            self._say(
                403, "Open the address that dctl ui has printed, in this browser. It works once; then: dctl ui again."
            )
            return
        origin = self.headers.get("Origin")
        if self.command not in READING and (
            origin is None or origin.lower() not in [f"http://{host}" for host in proxy.hosts]
        ):
            self._say(403, "A page of another site may not write here.")
            return
        self._pass_on()

    def _let_in(self, key: str) -> None:
        """The key for the cookie. A page that goes on by itself, since a redirect from a file would not carry the cookie."""
        proxy = self.server.proxy
        cookie = proxy.redeem(key)
        if cookie is None and not proxy.knows(self._cookie()):
            self._say(403, "This address has been used, or is not one of mine. Start dctl ui again.")
            return
        extra = (
            []
            if cookie is None
            else [("Set-Cookie", f"{proxy.cookie_name}={cookie}; HttpOnly; SameSite=Strict; Path=/")]
        )
        page = (
            '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/"><a href="/">Go on</a>\n'
        )
        self._say(200, page, "text/html; charset=utf-8", extra)

    def _cookie(self) -> str | None:
        wanted = f"{self.server.proxy.cookie_name}="
        for header in self.headers.get_all("Cookie", []):
            for part in header.split(";"):
                if part.strip().startswith(wanted):
                    return str(part.strip()[len(wanted) :])
        return None

    def _pass_on(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit() and len(length) < 16):
            self._say(411, "Say how long the body is.")
            return
        if not self.path.startswith("/") or (self.command in READING and int(length)):
            # What the data port may understand in another way than we do.
            self._say(400, "This is no request of a browser.")
            return
        try:
            self._exchange(int(length))
        except DistricompError as error:
            self.close_connection = True
            self._say(502, f"The cluster cannot be asked: {error}")
        except (OSError, http.client.HTTPException) as error:
            # Perhaps in the middle of an answer: its end must not look like one.
            self.close_connection = True
            if not self._begun:
                self._say(502, f"The cluster's data port does not answer: {error or type(error).__name__}")

    _begun = False

    def _exchange(self, length: int) -> None:
        """One request to the data port and its answer; a read is tried again with a fresh address and grant."""
        self._begun = False
        for anew in (False, True):
            is_last = anew or bool(length)
            upstream = self.server.proxy.upstream(anew=anew)
            try:
                self._request(upstream, length)
                answer = upstream.getresponse()
                if answer.status == http.client.UNAUTHORIZED:
                    self.server.proxy.forget_grant()
                if is_last or answer.status != http.client.UNAUTHORIZED:
                    self._reply(answer)
                    return
            except (OSError, http.client.HTTPException):
                if is_last or self._begun or self.command not in READING:
                    raise
            finally:
                upstream.close()

    def _request(self, upstream: http.client.HTTPConnection, length: int) -> None:
        grant = self.server.proxy.grant()
        upstream.putrequest(self.command, self.path, skip_accept_encoding=True)
        for name in PASSED_ON:
            value = self.headers.get(name)
            if value is not None:
                upstream.putheader(name, value)
        if grant:
            upstream.putheader("Authorization", f"Bearer {grant}")
        if self.command not in READING:
            upstream.putheader("Content-Length", str(length))
        upstream.endheaders()
        while length:
            chunk = self.rfile.read(min(length, CHUNK_BYTES))
            if not chunk:
                raise http.client.IncompleteRead(b"", length)
            length -= len(chunk)
            upstream.send(chunk)

    def _reply(self, answer: http.client.HTTPResponse) -> None:
        self._begun = True
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in KEPT_BACK:
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None and answer.status not in (204, 304):
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            while chunk := answer.read1(CHUNK_BYTES):
                self.wfile.write(chunk)
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)

    def _say(self, status: int, text: str, kind: str = "text/plain; charset=utf-8", extra: Any = ()) -> None:
        body = (text if text.endswith("\n") else f"{text}\n").encode()
        self.send_response_only(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *OWN_HEADERS, *extra):
            self.send_header(name, value)
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            # What was not read of the request must not be taken for the next one.
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
