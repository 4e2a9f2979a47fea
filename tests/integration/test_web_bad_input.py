"""Garbage, excess, halves and silence on both ports of the real process, while somebody else is served as ever.

Once insecure, once with TLS, where whoever behaves badly has shown no certificate.
"""

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.weblab import WAIT_S, Party, Site, job_records, site
from tests.priority import sharing

Peer = Callable[[socket.socket], None]
ROUNDS = 2
PROMPT_S = 5.0
"""An answer takes about a millisecond. Who has to wait for the others' deadlines waits 10 s at least."""


@pytest.fixture(scope="module", params=["insecure", "tls"])
def web(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web"), secure=request.param == "tls") as it:
        it.fill_journal(*job_records(1, [b"data", b"other"], [b"result"]))
        yield it


def admin(it: Site) -> Party | None:
    return it.party("admin", "admin") if it.authority is not None else None


class Bystander:
    """A decent peer: asks the same over and over on one connection of each port, and counts."""

    def __init__(self, it: Site) -> None:
        self.answers = 0
        self.slowest_s = 0.0
        self._shared = 1.0
        self.faults: list[str] = []
        self._site = it
        self._party = admin(it)
        self._ports = {it.web_port: b"/healthz", it.data_port: b"/results/1.0"}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="bystander")

    def __enter__(self) -> "Bystander":
        self._shared = sharing()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(WAIT_S)
        assert self.faults == []
        assert self.answers >= 10
        assert self.slowest_s < PROMPT_S * max(self._shared, sharing())

    def _ask(self) -> None:
        with contextlib.ExitStack() as stack:
            peers = {
                stack.enter_context(self._site.dial(port, self._party)): path for port, path in self._ports.items()
            }
            while not self._done.is_set() or self.answers < 10:
                for peer, path in peers.items():
                    began = time.monotonic()
                    peer.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
                    answer = whole_answer(peer)
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                    self.answers += 1
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        self.faults.append(repr(answer[:200]))
                        return


def whole_answer(peer: socket.socket) -> bytes:
    """Head and body, which TLS may bring one after the other."""
    answer = b""
    while True:
        head, found, body = answer.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return answer
        piece = peer.recv(65536)
        if not piece:
            return answer
        answer += piece


def head(method: bytes = b"GET", path: bytes = b"/healthz", *lines: bytes) -> bytes:
    return b"\r\n".join((b"%b %b HTTP/1.1" % (method, path), b"Host: localhost", *lines, b"", b""))


POST = (b"POST", b"/api/v1/jobs", b"Content-Type: application/json")
GARBAGE = random.Random(7).randbytes(4000)
REFUSED = {
    "garbage": (GARBAGE, (400,)),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + GARBAGE[:400], (400,)),
    "a frame of the control port": (b"\x00\x00\x00\x05\x92\x01\x02\x03\x04", (400,)),
    "text": (b"hello, is there anybody?\r\n\r\n", (400,)),
    "an oversized request line": (head(path=b"/" + b"a" * 100_000), (414,)),
    "an endless method": (b"G" * 100_000, (400, 431)),
    "an oversized header": (head(b"GET", b"/healthz", b"X-A: " + b"b" * 100_000), (431,)),
    "too many headers": (head(b"GET", b"/healthz", *[b"X-A: b"] * 1000), (431,)),
    "a header that never ends": (head()[:-2] + b"X-A: " + b"b" * 400_000, (431,)),
    "two lengths": (head(b"POST", b"/healthz", b"Content-Length: 4", b"Content-Length: 5") + b"abcd", (400,)),
    "a length and chunks": (head(b"POST", b"/healthz", b"Content-Length: 4", b"Transfer-Encoding: chunked"), (400,)),
    "a negative length": (head(b"POST", b"/healthz", b"Content-Length: -1"), (400,)),
    "a length beyond counting": (head(b"POST", b"/healthz", b"Content-Length: " + b"9" * 30), (400,)),
    "a chunk of nonsense": (head(*POST, b"Transfer-Encoding: chunked") + b"zz\r\n", (400, 404, 405, 415)),
    "no host": (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", (400,)),
    "a NUL in the path": (head(path=b"/a\0b"), (400,)),
    "another version": (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", (400,)),
    "an oversized body": (head(*POST, b"Content-Length: 99999999999"), (404, 405, 413)),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("is_data_port", [False, True], ids=["plain", "data"])
def test_what_is_refused_is_told_so_and_costs_nobody_else(web: Site, name: str, is_data_port: bool) -> None:
    sent, statuses = REFUSED[name]
    with Bystander(web):
        for _ in range(ROUNDS):
            answer = said(web, web.data_port if is_data_port else web.web_port, sent)
            assert answer[:9] == b"HTTP/1.1 ", (name, answer[:100])
            assert int(answer[9:12]) in (*statuses, 401), (name, answer[:200])
            assert (is_data_port and web.authority is not None) or int(answer[9:12]) != 401
            assert b'"error"' in answer
            assert b'"message"' in answer
            assert b"onnection: close" in answer


def said(web: Site, port: int, data: bytes) -> bytes:
    """What a peer that sends all of this and then listens is answered, until the end."""
    answer = b""
    with web.dial(port) as peer:
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            peer.sendall(data)
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            while piece := peer.recv(65536):
                answer += piece
    return answer


HALF_HELLOS = [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] * 10
"""What peers of the data port say before they fall silent in the middle of their TLS greeting."""


def silent(_: socket.socket) -> None:
    pass


def half_a_line(peer: socket.socket) -> None:
    peer.sendall(b"GET /heal")


def half_a_head(peer: socket.socket) -> None:
    peer.sendall(head()[:-2])


def half_a_body(peer: socket.socket) -> None:
    peer.sendall(head(*POST, b"Content-Length: 1000") + b'{"definition": ')


def half_a_chunk(peer: socket.socket) -> None:
    peer.sendall(head(*POST, b"Transfer-Encoding: chunked") + b"400\r\nabc")


def half_a_blob(peer: socket.socket) -> None:
    peer.sendall(head(b"PUT", b"/blobs/" + b"a" * 64, b"Content-Length: 100000") + bytes(500))


def asks_and_never_listens(peer: socket.socket) -> None:
    peer.sendall(head(path=b"/static/page.js") * 4)


def ends_its_half(peer: socket.socket) -> None:
    peer.sendall(head()[:-2])
    peer.shutdown(socket.SHUT_WR)


def resets(peer: socket.socket) -> None:
    peer.sendall(head(*POST, b"Content-Length: 1000") + b"{")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    peer.close()


@pytest.mark.parametrize(
    "stop",
    [silent, half_a_line, half_a_head, half_a_body, half_a_chunk, half_a_blob, asks_and_never_listens, ends_its_half, resets],
)  # fmt: skip
def test_many_who_stop_half_way_cost_nobody_else(web: Site, stop: Peer) -> None:
    with contextlib.ExitStack() as stack:
        for port in (web.web_port, web.data_port) * 60:
            stop(stack.enter_context(web.dial(port)))
        for hello in HALF_HELLOS:
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", web.data_port), timeout=WAIT_S))
            peer.sendall(hello)
        party = admin(web)
        with Bystander(web):
            assert web.fetch("/api/v1/jobs", data=True, party=party).status == 200
            assert web.fetch("/").status == 200
            put = web.fetch(
                "/api/v1/jobs", data=True, method="POST", body=b"{}", party=party, Content_Type="application/json"
            )
            assert put.json()["message"] == "definition is missing; it is needed"


def test_what_was_half_uploaded_is_gone_with_its_peer(web: Site) -> None:
    with web.dial(web.data_port, admin(web)) as peer:
        half_a_blob(peer)
        until_files(web.blobs / "tmp", 1)
    until_files(web.blobs / "tmp", 0)


def until_files(folder: Path, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(list(folder.iterdir()) if folder.exists() else []) != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("many_files")
def test_a_flood_of_connections_leaves_room_for_the_next(web: Site) -> None:
    """Beyond the cap the longest idle one makes room; those that never said a word are the first to go."""
    with contextlib.ExitStack() as stack:
        flood = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=WAIT_S))
            for port in (web.web_port, web.data_port)
            for _ in range(1100)
        ]
        assert len(flood) == 2200
        assert web.fetch("/healthz").status == 200
        assert web.fetch("/healthz", data=True, party=admin(web)).status == 200
