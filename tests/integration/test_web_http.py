"""The HTTP/1.1 listener over real sockets, plain and with TLS: framing, keep-alive, limits, slow and hostile peers."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dcoord.authority import Authority
from dcoord.web import http1
from dcoord.web.http1 import Deadlines, Receive, Scope, Send
from dcoord.web.server import Listener
from districomp import tls
from tests.integration.weblab import until
from tests.patience import PATIENCE_S
from tests.priority import timed

QUICK = Deadlines(head_s=0.3, idle_s=0.3, body_s=0.3, write_s=0.3, linger_s=0.3)
GET = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"


TLS: dict[str, ssl.SSLContext] = {}
"""The contexts of both sides, `server` and `client`; empty: plain TCP."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("trust"), "test")


@pytest.fixture(autouse=True, params=["plain", "tls"])
def kind(request: pytest.FixtureRequest, authority: Authority) -> Iterator[str]:
    """Every test runs for both, but those that are marked to be about one."""
    if request.param == "tls":
        TLS["server"] = tls.server_context(*authority.web_chain(), authority.authorities)
        TLS["client"] = tls.client_context(authority.authorities)
        TLS["client"].check_hostname = False
    yield request.param
    TLS.clear()


only_plain = pytest.mark.parametrize("kind", ["plain"], indirect=True)


class Echo:
    """An application that says what it got; some paths misbehave on purpose."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.released = asyncio.Event()
        self.endless_bytes = 0
        self.waiting = 0  # how many requests have come to /wait
        self.broken_off = False  # whether an endless answer came to an end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/raise":
            raise ValueError("on purpose")
        if path == "/known":
            scope["connection"].is_known = True
        if path == "/deaf":
            await self.answer(send, b"I do not read bodies", 422)
            return
        if path == "/wait":
            self.waiting += 1
            await self.released.wait()
        if path == "/endless":
            try:
                await self.endless(send)
            finally:
                self.broken_off = True
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.seen.append((scope["method"], "disconnect", len(body)))
                return
            body += event["body"]
            if not event["more_body"]:
                break
        self.seen.append((scope["method"], path, len(body)))
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (b"one,", b"two,", b"three"):
                await send({"type": "http.response.body", "body": piece, "more_body": piece != b"three"})
            return
        await self.answer(send, b"%s %s %d" % (scope["method"].encode(), path.encode(), len(body)))

    async def answer(self, send: Send, body: bytes, status: int = 200) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})

    async def endless(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            self.endless_bytes += 65536
            await asyncio.sleep(0)


class Server:
    """A Listener in a thread of its own."""

    def __init__(self, **options: Any) -> None:
        self.app = Echo()
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.port = 0

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._started.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def release(self) -> None:
        """Let the requests for /wait go on."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.app.released.set)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        listener = Listener(self.app, "the test's port", context=lambda: TLS.get("server"), **self._options)
        _, self.port = await listener.start("127.0.0.1", 0)
        self._started.set()
        await self._stopping.wait()
        await listener.stop()

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            if not TLS:
                yield connection
                return
            with TLS["client"].wrap_socket(connection, suppress_ragged_eofs=False) as secure:
                yield secure

    def say(self, data: bytes) -> bytes:
        """Everything that the server answers until it closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := connection.recv(65536):
            data += piece
    return data


def read_answer(connection: socket.socket, already: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """(head, body, what came after) of an answer that has a Content-Length."""
    data = already
    while b"\r\n\r\n" not in data:
        data += some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < size:
        body += some(connection)
    return head, body[:size], body[size:]


def some(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    assert piece, "the server closed the connection"
    return piece


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        yield it


def test_a_connection_is_kept_for_the_next_request(server: Server) -> None:
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(GET)
            head, body, _ = read_answer(connection)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\ndate: " in head
            assert b"connection: close" not in head
            assert body == b"GET /echo 0"


def test_requests_sent_ahead_are_answered_in_order(server: Server) -> None:
    with server.connect() as connection:
        post = b"POST /second HTTP/1.1\r\nHost: l\r\nContent-Length: 5\r\n\r\nhello"
        connection.sendall(b"GET /first HTTP/1.1\r\nHost: l\r\n\r\n" + post + b"GET /third HTTP/1.1\r\nHost: l\r\n\r\n")
        rest = b""
        bodies = []
        for _ in range(3):
            _, body, rest = read_answer(connection, rest)
            bodies.append(body)
    assert bodies == [b"GET /first 0", b"POST /second 5", b"GET /third 0"]


def test_too_many_requests_sent_ahead_end_the_connection(server: Server) -> None:
    waiting = b"GET /wait HTTP/1.1\r\nHost: l\r\n\r\n"
    server.release()
    answer = server.say(waiting * (http1.PIPELINED_MAX + 5))
    assert answer.count(b"HTTP/1.1 400 ") == 1


@pytest.mark.parametrize(
    "request_",
    [
        GET.replace(b"Host", b"Connection: close\r\nHost"),
        b"POST /echo HTTP/1.1\r\nHost: l\r\nConnection: close\r\nContent-Length: 7\r\n\r\n1234567",
        b"PUT /echo HTTP/1.1\r\nHost: l\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
    ],
)
def test_a_request_split_at_every_byte_has_the_same_answer(server: Server, request_: bytes) -> None:
    def answer_to(*parts: bytes) -> bytes:
        with server.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in parts:
                connection.sendall(part)
            return read_all(connection).partition(b"\r\n\r\n")[2]

    whole = answer_to(request_)
    assert whole in (b"GET /echo 0", b"POST /echo 7", b"PUT /echo 7")
    for at in range(1, len(request_)):
        assert answer_to(request_[:at], request_[at:]) == whole
    assert answer_to(*(request_[i : i + 1] for i in range(len(request_)))) == whole


def test_an_answer_of_unknown_length_is_chunked(server: Server) -> None:
    answer = server.say(b"GET /stream HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"4\r\none,\r\n4\r\ntwo,\r\n5\r\nthree\r\n0\r\n\r\n"


def test_http_1_0_gets_a_plain_body_and_the_end(server: Server) -> None:
    answer = server.say(b"GET /stream HTTP/1.0\r\n\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == b"one,two,three"
    assert b"chunked" not in answer


def test_head_has_the_length_and_no_body(server: Server) -> None:
    answer = server.say(b"HEAD /echo HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
    assert b"content-length: 12" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET http://other/ HTTP/1.1\r\nHost: l\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: l\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: l\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: l\r\nContent-Length: -3\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHo st: l\r\n\r\n", b"400"),
        (b"GET /" + b"a" * http1.TARGET_BYTES_MAX + b" HTTP/1.1\r\nHost: l\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (http1.HEADERS_MAX + 1) + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * http1.HEAD_BYTES_MAX + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 300_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A" * 300_000, b"431"),
    ],
)
def test_what_is_not_a_decent_request_is_refused_and_cut(server: Server, data: bytes, status: bytes) -> None:
    answer = server.say(data)
    assert answer.startswith(b"HTTP/1.1 " + status + b" ")
    assert b'{"error": "' in answer
    assert server.app.seen == []
    assert server.say(GET.replace(b"Host", b"Connection: close\r\nHost")).endswith(b"GET /echo 0")


def test_an_endless_chunk_extension_is_refused(server: Server) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"5" * 1000)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_an_answer_before_the_body_is_over_can_be_read(server: Server) -> None:
    size = 20_000_000
    with server.connect() as connection:
        connection.sendall(b"PUT /deaf HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))  # a client that looks at the answer only after it has sent all
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"connection: close" in answer
    assert answer.endswith(b"I do not read bodies")


def test_continue_is_said_only_to_who_waits_for_it(server: Server) -> None:
    head = b"PUT %s HTTP/1.1\r\nHost: l\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head % b"/echo")
        assert some(connection) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert read_all(connection).endswith(b"PUT /echo 4")
    assert server.say(head % b"/deaf").startswith(b"HTTP/1.1 422 ")


def test_who_is_refused_and_stays_is_cut() -> None:
    with Server(deadlines=Deadlines(linger_s=0.3)) as server, server.connect() as peer:
        peer.sendall(b"NONSENSE\r\n\r\n")
        assert b"400" in peer.recv(65536)
        deadline = time.monotonic() + PATIENCE_S
        with pytest.raises((ConnectionError, ssl.SSLError)):
            while time.monotonic() < deadline:
                peer.sendall(b"more")
                time.sleep(0.02)


def test_a_body_that_nobody_reads_is_not_taken_in(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"PUT /wait HTTP/1.1\r\nHost: l\r\nContent-Length: 1000000000\r\n\r\n")
        connection.setblocking(False)
        sent = 0
        idle_since = time.monotonic()
        while time.monotonic() < idle_since + 0.5:
            try:
                sent += connection.send(bytes(65536))
                idle_since = time.monotonic()
            except (BlockingIOError, ssl.SSLWantWriteError):
                time.sleep(0.01)
        # What both sockets hold (at most 6 MB each by Linux' defaults) and what is read ahead.
        assert sent < 16_000_000


def test_an_answer_that_nobody_takes_is_not_piled_up() -> None:
    with Server(deadlines=Deadlines(write_s=30)) as server, server.connect() as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: l\r\n\r\n")
        until(lambda: server.app.endless_bytes, "the answer begins")
        last = -1
        while server.app.endless_bytes != last:
            last = server.app.endless_bytes
            time.sleep(0.3)
        assert 0 < last < 16_000_000


def test_our_bug_costs_one_connection(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    answer = server.say(b"GET /raise HTTP/1.1\r\nHost: l\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"on purpose" not in answer
    assert "on purpose" in caplog.text
    assert server.say(GET.replace(b"Host", b"Connection: close\r\nHost")).endswith(b"GET /echo 0")


@pytest.mark.parametrize("beginning", [b"", GET[:-2], b"PUT /echo HTTP/1.1\r\nHost: l\r\nContent-Length: 9\r\n\r\n12"])
def test_a_peer_that_goes_no_further_is_cut(beginning: bytes) -> None:
    with Server(deadlines=QUICK) as server, server.connect() as connection:
        connection.sendall(beginning)
        answer = read_all(connection)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_head_that_drips_is_cut_all_the_same() -> None:
    with Server(deadlines=QUICK) as server, server.connect() as connection:
        connection.settimeout(0.05)
        connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        answer = b""
        deadline = time.monotonic() + PATIENCE_S
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"b")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_and_a_stalled_download_are_cut() -> None:
    with Server(deadlines=Deadlines(idle_s=0.3)) as server, server.connect() as idle:
        idle.sendall(GET)
        read_answer(idle)
        assert idle.recv(1) == b""
    with Server(deadlines=Deadlines(write_s=0.3)) as server, server.connect() as stalled:
        stalled.sendall(b"GET /endless HTTP/1.1\r\nHost: l\r\n\r\n")
        until(lambda: server.app.endless_bytes > 100_000, "the answer begins")
        until(lambda: server.app.broken_off, "the download to be cut")
        got = 0
        with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
            while piece := stalled.recv(1 << 20):
                got += len(piece)
                assert got < 50_000_000, "it goes on as if nothing had happened"


def test_a_peer_that_leaves_before_its_answer_is_no_bug_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    with Server() as server:
        for _ in range(3):
            with server.connect() as peer:
                peer.sendall(GET.replace(b"/echo", b"/endless"))
                some(peer)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        assert server.say(GET.replace(b"Host", b"Connection: close\r\nHost")).endswith(b"GET /echo 0")
    assert caplog.text == ""


def test_a_request_under_way_has_no_deadline_of_the_peers() -> None:
    with Server(deadlines=QUICK._replace(head_s=10.0)) as server, server.connect() as connection:
        connection.sendall(GET.replace(b"/echo", b"/wait"))
        until(lambda: server.app.waiting, "it to be under way")
        time.sleep(1.0)
        server.release()
        assert read_answer(connection)[1] == b"GET /wait 0"


def test_an_idle_connection_makes_room_for_a_new_one() -> None:
    with Server(connections_max=3) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(3)]
        for connection in idle:
            connection.sendall(GET)
            read_answer(connection)
        new = stack.enter_context(server.connect())
        new.sendall(GET)
        assert read_answer(new)[1] == b"GET /echo 0"
        assert idle[0].recv(1) == b""
        idle[2].sendall(GET)
        assert read_answer(idle[2])[1] == b"GET /echo 0"


def test_who_is_known_keeps_its_place_before_those_who_are_not() -> None:
    with Server(connections_max=3) as server, contextlib.ExitStack() as stack:
        known = stack.enter_context(server.connect())
        known.sendall(GET.replace(b"/echo", b"/known"))
        read_answer(known)
        strangers = [stack.enter_context(server.connect()) for _ in range(2)]
        for connection in strangers:
            connection.sendall(GET)
            read_answer(connection)
        new = [stack.enter_context(server.connect()) for _ in range(2)]
        for connection in (*new, *strangers):
            connection.settimeout(PATIENCE_S)
        for connection in new:
            connection.sendall(GET)
            assert read_answer(connection)[1] == b"GET /echo 0"
        assert [connection.recv(1) for connection in strangers] == [b"", b""]
        known.sendall(GET)
        assert read_answer(known)[1] == b"GET /echo 0"


def test_when_all_are_busy_a_new_connection_is_told_so() -> None:
    with Server(connections_max=2) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(server.connect())
            busy.sendall(GET.replace(b"/echo", b"/wait"))
        until(lambda: server.app.waiting == 2, "both to be busy")
        with server.connect() as new:
            assert read_all(new).startswith(b"HTTP/1.1 503 ")


def test_stopping_lets_the_request_in_hand_be_answered() -> None:
    with Server() as server, server.connect() as idle, server.connect() as busy:
        idle.sendall(GET)
        read_answer(idle)
        busy.sendall(GET.replace(b"/echo", b"/wait"))
        until(lambda: server.app.waiting, "it to be in hand")
        server.stop()
        assert idle.recv(1) == b""
        server.release()
        head, body, _ = read_answer(busy)
        assert body == b"GET /wait 0"
        assert b"connection: close" in head
        assert busy.recv(1) == b""


def test_silent_half_open_and_stalled_peers_do_not_slow_a_new_request(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(300 + 100 + 32)]
        for connection in slow[300:400]:
            connection.sendall(GET[:-2])
        for connection in slow[400:]:
            connection.sendall(GET.replace(b"/echo", b"/wait"))
        with timed() as took:
            for _ in range(20):
                with server.connect() as connection:
                    connection.sendall(GET)
                    assert read_answer(connection)[1] == b"GET /echo 0"
        assert took.alone_s < 20 * 0.5
