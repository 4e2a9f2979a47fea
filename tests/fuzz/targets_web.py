"""Targets: HTTP at both ports, through the real parser, guard, gate and applications, over a socket pair.

The coordinator behind them is the tests' own (weblab), at the other end of a real control socket.
"""

import asyncio
import contextlib
import logging
import random
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from dcoord.authority import Authority
from dcoord.blobs import BlobStore
from dcoord.core import grants
from dcoord.core.grants import Grant
from dcoord.journal import Journal
from dcoord.web.app import WebApps
from dcoord.web.exchange import REASONS
from dcoord.web.guard import Hosts
from dcoord.web.http1 import App, Deadlines, HttpConnection
from dcoord.web.link import CoordinatorLink
from dcoord.web.trust import Trust
from districomp import tls
from districomp.model import Item
from districomp.taskdef import BundleFile
from tests.fuzz.target import Run, Target, edited
from tests.integration import weblab

DEADLINES: Final = Deadlines(0.2, 0.2, 0.2, 1.0, 0.01)
SECRET: Final = b"SeCrEt-of-the-data"
"""In the data of a task and in its result: nothing of it may be said at the plain port, or to a role that may not see it."""
ASKERS: Final = ("plain", "nobody", "worker", "submit", "read", "admin", "grant")
_STATUS: Final = re.compile(rb"\AHTTP/1\.1 (\d{3}) ")


class _Owner:
    """What a connection needs of its listener."""

    scheme = "https"
    deadlines = DEADLINES

    def __init__(self, app: App) -> None:
        self.app = app
        self.connections: set[HttpConnection] = set()

    def opened(self, connection: HttpConnection) -> bool:
        self.connections.add(connection)
        return True

    def closed(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)

    def date(self) -> bytes:
        return b"Thu, 01 Jan 1970 00:00:00 GMT"


class _Bugs(logging.Handler):
    """The web process' own word for a bug of its own is an error with a traceback in the log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(error or record.getMessage())


class Web:
    """Both applications, and who asks."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.bugs = _Bugs()
        logging.getLogger("dcoord.web").addHandler(self.bugs)
        logging.getLogger("dcoord.web").propagate = False
        self.authority = Authority.open(root / "trust", "room-12")
        self.coordinator = weblab.Coordinator(root / "control.sock", self.authority)
        self.coordinator.accepts_as = 7
        self.coordinator.start()
        try:
            self._fill(root)
            self.loop.run_until_complete(self._open(root))
        except BaseException:
            self.coordinator.stop()  # a thread that nothing would end
            raise
        self.certificates = {role: self._certificate(role) for role in ("worker", "submit", "read", "admin")}
        self.grants = [
            grants.mint(self.authority.grant_key, Grant(verb, path, "", "worker", "", 0, time.time() + 1e6)).encode()
            for verb, path in (
                ("GET", "/tasks/1.0"), ("PUT", "/blobs/" + "ab" * 32), ("GET", f"/bundles/{self.bundle}"), ("SESSION", ""),
            )
        ]  # fmt: skip

    def _fill(self, root: Path) -> None:
        items: list[Item] = [SECRET + b"%d" % i for i in range(4)]
        journal = Journal.open(root / "journal.sqlite")
        try:
            journal.commit(weblab.job_records(1, items, [b"result " + SECRET, None], "ann/s-ann"))
        finally:
            journal.close()
        self.store = BlobStore(root / "blobs")
        files = [BundleFile("a", 0o644, len(SECRET), self.store.put_bytes(SECRET).sha256.hex())]
        self.bundle = self.store.put_bytes(msgspec.msgpack.encode(files)).sha256.hex()

    async def _open(self, root: Path) -> None:
        trust = Trust(insecure=False)
        link = CoordinatorLink(root / "control.sock", trust)
        self._link = link
        self._linking = asyncio.create_task(link.run("http://127.0.0.1:1", "https://127.0.0.1:1"))
        while not (link.is_up and trust.is_known):  # noqa: ASYNC110 - a thread's word
            await asyncio.sleep(0.01)
        self.apps = WebApps(link, root / "control.sock", root / "journal.sqlite", self.store, trust, public=True)
        hosts = Hosts("127.0.0.1", ["h"], trust)
        self.plain, self.data = _Owner(self.apps.plain(hosts)), _Owner(self.apps.data(hosts))

    def _certificate(self, role: str) -> dict[str, Any]:
        """As OpenSSL shows a verified one."""
        name = f"districomp://{self.authority.cluster}/{role}/{role[0]}-ann"
        assert tls.holder(
            {"subjectAltName": (("URI", name),), "subject": (), "notAfter": "Jan  1 00:00:00 2099 GMT"}
        ), "this is no certificate of an identity any more"
        return {
            "subjectAltName": (("URI", name),),
            "subject": ((("userId", "ann"),),),
            "notAfter": "Jan  1 00:00:00 2099 GMT",
        }

    def close(self) -> None:
        self.apps.close()
        self.coordinator.stop()
        self.loop.run_until_complete(self._unlink())
        self.loop.close()
        logging.getLogger("dcoord.web").removeHandler(self.bugs)
        logging.getLogger("dcoord.web").propagate = True

    async def _unlink(self) -> None:
        """The coordinator is gone: its connections end by themselves."""
        while self._link.is_up:  # noqa: ASYNC110 - as the link hears of it
            await asyncio.sleep(0.01)
        self._linking.cancel()
        await asyncio.gather(self._linking, return_exceptions=True)
        await self.loop.shutdown_default_executor()

    def run(self, data: bytes) -> None:
        """The first byte: who asks; the rest is what is sent, @GRANT, @BUNDLE and @BLOB in it standing for real ones."""
        if not data:
            return
        who = ASKERS[data[0] % len(ASKERS)]
        grant = self.grants[data[0] // len(ASKERS) % len(self.grants)]
        sent = data[1:].replace(b"@GRANT", grant).replace(b"@BUNDLE", self.bundle.encode())
        self.bugs.errors.clear()
        # What the tests' coordinator remembers would look like a leak.
        self.coordinator.asked.clear()
        self.coordinator.submitted.clear()
        answer = self.loop.run_until_complete(self._exchange(who, sent))
        for error in self.bugs.errors:
            if isinstance(error, BaseException):
                raise error
            raise AssertionError(error)
        if answer:
            status = _STATUS.match(answer)
            assert status is not None, answer[:100]
            assert int(status[1]) in REASONS, answer[:100]
        if who in ("plain", "nobody", "worker"):
            # A grant that the input carries lets its bearer in: that is what it is for.
            assert SECRET not in answer or grant in sent, "who may not see data has seen some"

    async def _exchange(self, who: str, sent: bytes) -> bytes:
        owner = self.plain if who == "plain" else self.data
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.setblocking(False)
            _, connection = await self.loop.connect_accepted_socket(lambda: HttpConnection(owner), theirs)
            connection.certificate = self.certificates.get(who)
            answer = bytearray()
            try:
                async with asyncio.timeout(5.0):
                    sending = asyncio.create_task(self._send(ours, sent))
                    with contextlib.suppress(ConnectionError):
                        while piece := await self.loop.sock_recv(ours, 65536):
                            answer += piece
                    await sending
                    while connection in owner.connections:
                        connection.cut()
                        await asyncio.sleep(0)
            except TimeoutError:
                raise AssertionError("a whole request, and nothing more to come, is not answered in 5 s") from None
        return bytes(answer)

    async def _send(self, ours: socket.socket, sent: bytes) -> None:
        with contextlib.suppress(OSError):
            await self.loop.sock_sendall(ours, sent)
            ours.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def web() -> Iterator[Run]:
    """Both ports."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dc-fuzz-", dir=shm if shm.is_dir() else None) as folder:
        site = Web(Path(folder))
        try:
            yield site.run
        finally:
            site.close()


PATHS: Final = (
    "/", "/healthz", "/stats.json", "/static/page.js", "/favicon.ico", "/tasks/1.0", "/tasks/1.3?x=1", "/results/1.0", "/results/1.9",
    "/blobs/" + "ab" * 32, "/blobs/@BUNDLE", "/api/v1/status", "/api/v1/jobs", "/api/v1/jobs?mine=true&state=queued", "/api/v1/jobs/1",
    "/api/v1/jobs/1/tasks?state=failed", "/api/v1/tasks/1.0", "/api/v1/tasks/1.0/explain", "/api/v1/workers", "/api/v1/definitions",
    "/api/v1/definitions/render", "/api/v1/openapi.json", "/tasks/../../etc/passwd", "/%2e%2e/", "/static/..%2f",
)  # fmt: skip


def _seeds() -> list[bytes]:
    good = [
        bytes((who,)) + f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        for i, path in enumerate(PATHS)
        for who in (i % 7, 5)
    ]
    head = "HTTP/1.1\r\nHost: localhost:8422\r\n"
    json = '{"definition": "d", "items": ["a", "b"]}'
    posts = [
        f"POST /api/v1/jobs {head}Content-Type: application/json\r\nContent-Length: {len(json)}\r\n\r\n{json}",
        f"POST /api/v1/jobs {head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{json[:5]}\r\n0\r\n\r\n",
        f"PUT /blobs/{'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'} {head}Content-Length: 3\r\n\r\nabc",
        f"PUT /blobs/{'ab' * 32} {head}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabd",
        f"HEAD /blobs/@BUNDLE {head}Authorization: Bearer @GRANT\r\n\r\n",
        f"GET /tasks/1.0 {head}Authorization: Bearer @GRANT\r\nRange: bytes=1-4\r\nIf-Range: \"x\"\r\n\r\nGET / {head}\r\n",
        f"GET /results/1.0 {head}Cookie: a=b\r\nIf-None-Match: *\r\nConnection: close\r\n\r\n",
        f"DELETE /api/v1/jobs/1 {head}Origin: http://evil\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nxx",
        "GET / HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]  # fmt: skip
    good += [bytes((who,)) + post.encode() for who, post in enumerate(posts)]
    good += [bytes((6 + 7 * i,)) + post.encode() for i, post in enumerate(posts[2:6])]
    return good


_WORDS: Final = (
    "GET ", "PUT ", "POST ", "HEAD ", " HTTP/1.1\r\n", " HTTP/1.0\r\n", "\r\n\r\n", "\r\n", "Host: 127.0.0.1\r\n", "Host: evil\r\n", "Content-Length: 5\r\n",
    "Content-Length: -1\r\n", "Content-Length: 99999999999999999999\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip, chunked\r\n",
    "Expect: 100-continue\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Connection: upgrade\r\nUpgrade: h2c\r\n", "Range: bytes=0-\r\n",
    "Range: bytes=-0\r\n", "If-None-Match: *\r\n", "Authorization: Bearer @GRANT\r\n", "Authorization: Basic x\r\n", "Origin: https://127.0.0.1\r\n",
    "Content-Type: application/json\r\n", "Content-Type: application/json; charset=utf-16\r\n", "X_Y: 1\r\n", "Cookie: a\r\n", "?state=", "&mine=", "?limit=-1",
    "ffffffffffffffff\r\n", "0\r\n\r\n", "../", "%00", "%2e%2e/", "@BUNDLE", *PATHS,
)  # fmt: skip


def _mutate(data: bytes, rng: random.Random) -> bytes:
    return edited(data, rng, _WORDS)


TARGETS: Final = {"http": Target(web, _seeds, _WORDS, _mutate, bytes_max=8192)}
