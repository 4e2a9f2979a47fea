"""For the tests of dcoord-web: a coordinator's side of the control socket, a real journal, and the real process.

The coordinator's side speaks the real protocol on a real Unix socket, with certificates and grants of a real
authority, and answers with the documents that a test gives it; it decides nothing.
"""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dcoord.authority import Authority
from dcoord.core import grants
from dcoord.core.grants import Grant
from dcoord.core.records import JobEndRecord, JobRecord, OutcomeRecord, PayloadRecord, Record
from dcoord.journal import Journal
from districomp import keys, tls
from districomp.documents import Counts, DefinitionDocument, JobDocument, StatusDocument, WorkerDocument
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    Goodbye,
    HelloClient,
    HelloWeb,
    Items,
    Query,
    Refused,
    Reply,
    Submit,
    WebTrust,
    Welcome,
)
from districomp.model import DONE, FAILED, Item, Payload
from districomp.outcome import Outcome
from districomp.stream import Connection
from tests.patience import PATIENCE_S

WAIT_S = PATIENCE_S


T = TypeVar("T")


def until(condition: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """Wait until a condition is truthy, and return what it gave."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


def status(**changes: Any) -> StatusDocument:
    return msgspec.structs.replace(
        StatusDocument("cluster7id", "room-12", "0.1.0", 3, 7380.4, 2, 4, Counts(5, 2, 30, 1, 0, 0), 12.5), **changes
    )


def job(number: int, state: str = "queued", counts: Counts | None = None, **changes: Any) -> JobDocument:
    counts = counts or Counts(5, 2, 30, 1)
    tasks = sum(msgspec.structs.astuple(counts))
    document = JobDocument(
        number, f"job {number}", "render", state, tasks, counts, "2026-01-02T03:04:05.000Z", None, None, 9.5
    )
    return msgspec.structs.replace(document, **changes)


def worker(name: str, state: str = "busy", running: int = 1, **changes: Any) -> WorkerDocument:
    document = WorkerDocument(f"id-{name}", name, state, 2, running, "x86_64", 8 << 30, "127.0.0.1:5001", 0.4)
    return msgspec.structs.replace(document, **changes)


def definition(name: str, problems: list[str] | None = None) -> DefinitionDocument:
    return DefinitionDocument(name, "abc123", "what it does", "command", f"/somewhere/{name}.yaml", problems or [])


class Coordinator:
    """The coordinator's end of the control socket, in a thread of its own. `answers`: documents by noun, or by (noun, job, index)."""

    def __init__(self, path: Path, authority: Authority | None = None) -> None:
        """Without an authority it is insecure."""
        self.path = path
        self.authority = authority
        self.refused: list[str] = []
        self.answers: dict[Any, list[Any] | Refused] = {
            "status": [status()],
            "jobs": [job(1)],
            "workers": [worker("alpha"), worker("beta", "idle", 0)],
            "definitions": [definition("render"), definition("shell")],
        }
        self.hellos: list[HelloWeb] = []
        self.asked: list[Query] = []
        self.submitted: list[Submit | Items] = []
        self.silent = False
        self.refuses_with: Goodbye | None = None
        self.lets_in = True
        self.ends_submissions_with: Goodbye | None = None
        """None: submissions are taken in and, without `accepts_as`, never answered."""
        self.accepts_as = 0
        """The job number with which whole submissions are answered."""
        self.ends_at_hello = False
        self.answer_parts = 1
        self.trusts = True
        """False: it keeps to itself whom to trust."""
        self._connections: list[Connection] = []
        self._webs: list[Connection] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), name="coordinator")

    @property
    def connections(self) -> int:
        """How many there are now, dcoord-web's own link included."""
        return len(self._connections)

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._thread.start()
        assert self._started.wait(WAIT_S)

    def stop(self) -> None:
        """Gone as after a kill: connections are cut, nothing answers at the socket."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive()
        self._loop.close()

    def trust(self) -> WebTrust:
        """What dcoord-web is told of whom to trust."""
        if self.authority is None:
            return WebTrust(b"", b"", [], b"", [])
        certificate, key = self.authority.web_chain()
        return WebTrust(certificate, key, self.authority.authorities, self.authority.grant_key, list(self.refused))

    def tell_trust(self, trust: WebTrust | None = None) -> None:
        """Send it again, because it has changed, or another one."""
        message = trust or self.trust()

        def tell() -> None:
            for each in self._webs:
                each.send(message)

        self._loop.call_soon_threadsafe(tell)

    async def _serve(self) -> None:
        server = await self._loop.create_unix_server(lambda: Connection(self, accepting=True), str(self.path))
        self._started.set()
        await self._stop.wait()
        server.close()
        for connection in list(self._connections):
            connection.close()
        await self._empty.wait()
        self.path.unlink(missing_ok=True)

    def opened(self, connection: Connection) -> None:
        self._connections.append(connection)
        self._empty.clear()

    def closed(self, connection: Connection, reason: str) -> None:
        self._connections.remove(connection)
        if connection in self._webs:
            self._webs.remove(connection)
        if not self._connections:
            self._empty.set()

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        for message in messages:
            match message:
                case HelloWeb():
                    self.hellos.append(message)
                    if self.refuses_with is not None:
                        connection.close(self.refuses_with.code, self.refuses_with.text)
                        return
                    connection.greeted()
                    connection.send(Welcome(PROTOCOL_VERSION, "cluster7id", "room-12", 3, 15.0, message.data_url, at))
                    self._webs.append(connection)
                    if self.trusts:
                        connection.send(self.trust())
                case HelloClient():
                    if self.ends_at_hello and self.ends_submissions_with is not None:
                        connection.close(self.ends_submissions_with.code, self.ends_submissions_with.text)
                    elif self.lets_in:
                        connection.greeted()
                        connection.send(Welcome(PROTOCOL_VERSION, "cluster7id", "room-12", 3, 15.0, "", at))
                case Submit() | Items():
                    self.submitted.append(message)
                    if self.accepts_as and message.last:
                        connection.send(Accepted(message.request, self.accepts_as, 1))
                    if self.ends_submissions_with is not None:
                        connection.close(self.ends_submissions_with.code, self.ends_submissions_with.text)
                case Query():
                    self.asked.append(message)
                    if not self.silent:
                        self._answer(connection, message)
                case _:
                    raise AssertionError(f"dcoord-web sent {message!r}")

    def _answer(self, connection: Connection, query: Query) -> None:
        answer = self.answers.get((query.noun, query.job, query.index), self.answers.get(query.noun))
        if answer is None:
            answer = Refused(0, f"unknown_{query.noun}", f"there is no such {query.noun}")
        if isinstance(answer, Refused):
            connection.send(Refused(query.request, answer.code, answer.text))
            return
        documents = [msgspec.msgpack.encode(document) for document in answer]
        size = -(-len(documents) // self.answer_parts) or 1
        parts = [documents[start : start + size] for start in range(0, len(documents), size)] or [[]]
        for part in parts:
            connection.send(Reply(query.request, part, part is parts[-1]))


class Site:
    """Folders, coordinator's side and `dcoord-web` process of one test; insecure unless `secure`."""

    def __init__(self, root: Path, config: str = "", *, coordinator: bool = True, secure: bool = False) -> None:
        self.root = root
        self.state = root / "state"
        self.journal = self.state / "dcoord" / "journal.sqlite"
        self.blobs = self.state / "dcoord" / "blobs"
        self.authority = Authority.open(self.state / "dcoord" / "trust", "room-12") if secure else None
        self.coordinator = Coordinator(root / "run" / "control.sock", self.authority)
        self.log = root / "web.log"
        self.web_port = 0
        self.data_port = 0
        self._config = f"insecure: {'false' if secure else 'true'}\nlisten: {{address: 127.0.0.1}}\n" + (
            config or "web: {port: 0}\ndata: {port: 0}\n"
        )
        self._with_coordinator = coordinator
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        folders = {name: str(self.root / name.lower()) for name in ("STATE", "CONFIG")} | {
            "RUNTIME": str(self.root / "run")
        }
        return {**os.environ, **{f"DISTRICOMP_{name}_DIR": folder for name, folder in folders.items()}}

    def configure(self) -> None:
        (self.root / "config").mkdir(parents=True, exist_ok=True)
        (self.root / "config" / "dcoord.yaml").write_text(self._config)

    def start(self, *arguments: str) -> None:
        self.configure()
        if self._with_coordinator:
            self.coordinator.start()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dcoord.web", *arguments],
                env=self.environment, stdin=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        found = until(self._ports, "dcoord-web says where it serves")
        assert found is not None
        self.web_port, self.data_port = int(found[1]), int(found[2])
        if self._with_coordinator:
            until(lambda: self.fetch("/healthz").status == 200, "dcoord-web is linked to the coordinator")

    def _ports(self) -> "re.Match[str] | None":
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return re.search(
            r"page is at http://127\.0\.0\.1:(\d+), data at https?://127\.0\.0\.1:(\d+)", self.log.read_text()
        )

    def stop(self) -> int:
        """SIGTERM; the process' exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        code = process.wait(WAIT_S)
        assert process.stdin is not None
        process.stdin.close()
        return code

    def party(self, role: str, identity: str, name: str = "") -> "Party":
        """Somebody with a certificate."""
        assert self.authority is not None
        key = keys.new_key()
        issued = self.authority.sign(key.csr, role, identity, name or identity)
        return Party(self.authority.authorities, tls.to_pem([issued.certificate, *issued.chain]), key.key)

    def grant(self, verb: str, path: str = "", role: str = "worker", **changes: Any) -> str:
        """A grant's text, good for a minute unless said."""
        assert self.authority is not None
        grant = Grant(verb, path, "", role, "", 0, time.time() + 60)
        return grants.mint(self.authority.grant_key, msgspec.structs.replace(grant, **changes))

    def connect(self, party: "Party | None" = None, *, data: bool = True) -> http.client.HTTPConnection:
        """A connection to a port, by TLS if it speaks that; `party`: whose certificate is shown."""
        if not data or self.authority is None:
            return http.client.HTTPConnection("127.0.0.1", self.data_port if data else self.web_port, timeout=WAIT_S)
        party = party or Party(self.authority.authorities)
        return SecureConnection(self.data_port, party.context(), tls.server_name(self.authority.cluster))

    def dial(self, port: int, party: "Party | None" = None) -> socket.socket:
        """A bare connection to one of the ports, its TLS handshake done if it speaks that."""
        plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        if self.authority is None or port != self.data_port:
            return plain
        context = (party or Party(self.authority.authorities)).context()
        try:
            name = tls.server_name(self.authority.cluster)
            return context.wrap_socket(plain, server_hostname=name, suppress_ragged_eofs=False)
        except BaseException:
            plain.close()
            raise

    def fetch(
        self,
        path: str,
        *,
        data: bool = False,
        method: str = "GET",
        body: Any = None,
        party: "Party | None" = None,
        **headers: str,
    ) -> "Answer":
        """One request on a connection of its own; `headers` with `_` for `-`."""
        connection = self.connect(party, data=data)
        try:
            return exchange(connection, path, method, body, **headers)
        finally:
            connection.close()

    def fill_journal(self, *records: Record) -> None:
        journal = Journal.open(self.journal)
        try:
            journal.commit(records)
        finally:
            journal.close()


class Party:
    """Who connects: the authorities (DER) that it trusts, its certificate and key (PEM) if it has them."""

    def __init__(self, authorities: list[bytes], certificate: bytes = b"", key: bytes = b"") -> None:
        self.parts = authorities, certificate, key

    def context(self) -> ssl.SSLContext:
        return tls.client_context(*self.parts)


class SecureConnection(http.client.HTTPConnection):
    """HTTP over TLS to a port here, whose certificate must be for `name`."""

    def __init__(self, port: int, context: ssl.SSLContext, name: str) -> None:
        super().__init__("127.0.0.1", port, timeout=WAIT_S)
        self._context = context
        self._name = name

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), timeout=WAIT_S)
        try:
            self.sock = self._context.wrap_socket(plain, server_hostname=self._name)
        except BaseException:
            plain.close()
            raise


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def exchange(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", body: Any = None, **headers: str
) -> Answer:
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def job_records(number: int, items: list[Item], results: list[Payload | None], user: str = "somebody") -> list[Record]:
    """A job in the journal: one task an item, the first len(results) done, the next failed, the rest queued."""
    record = JobRecord(number, f"request-{number}", user, "", "digest", "shell", {}, len(items), None, None, 1.0)
    done = list(range(len(results)))
    outcome = Outcome(
        number, 1, "worker-1", [*done, len(done)], states=[DONE] * len(done) + [FAILED],
        reasons=["done"] * len(done) + ["exit"], ended=[2.0] * (len(done) + 1), results=[*results, None],
    )  # fmt: skip
    return [PayloadRecord(number, 0, items), record, OutcomeRecord(outcome)]


def numbered_job_records(number: int, start: int, step: int, count: int) -> list[Record]:
    return [
        JobRecord(number, f"request-{number}", "", "", "digest", "shell", {}, count, (start, step), None, 1.0),
        JobEndRecord(number, "cancelled", [0, 0, 0, 0, count, 0], 2.0),
    ]


@contextmanager
def site(
    root: Path,
    config: str = "",
    *,
    coordinator: bool = True,
    secure: bool = False,
    answers: dict[str, Any] | None = None,
) -> Iterator[Site]:
    """A running Site; its process must still be there and clean at the end, unless the test ended it."""
    it = Site(root, config, coordinator=coordinator, secure=secure)
    it.coordinator.answers.update(answers or {})
    try:
        it.start()
        yield it
        if it.process is not None:
            assert it.process.poll() is None, it.log.read_text()
        assert it.stop() == 0
        assert "Traceback" not in it.log.read_text(), it.log.read_text()
    finally:
        if it.process is not None:
            it.process.kill()
            it.process.wait(WAIT_S)
            assert it.process.stdin is not None
            it.process.stdin.close()
        it.coordinator.stop()
