"""A coordinator made by hand, for the faults that a real one does not commit when a test wants them.

It speaks the real protocol on a real socket, one thread a connection; tests end tasks, cut connections
and take it away by calls. What a coordinator decides is tested with the real one.
"""

import contextlib
import fcntl
import hashlib
import http.server
import os
import pty
import select
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from districomp import wire
from districomp.documents import Counts, JobDocument, StatusDocument
from districomp.errors import RemoteProtocolError
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    Cancel,
    Goodbye,
    HelloClient,
    Items,
    Message,
    Query,
    Refused,
    Reply,
    ResultRows,
    Results,
    Submit,
    Watch,
    Welcome,
)
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, Item, Payload
from districomp.outcome import Outcome
from tests.patience import PATIENCE_S

BOUND_S = PATIENCE_S
"""How long the lab waits for anything before a test has failed."""
DAEMONS = Path(__file__).resolve().parents[2] / "daemons"
SUBMITTED = "2026-01-02T03:04:05.678Z"


class LabJob:
    """A job of the lab: its submission, its items, and the rows that tests have added."""

    def __init__(self, number: int, submit: Submit, items: list[Item]) -> None:
        self.number = number
        self.submit = submit
        self.items = items
        self.count = submit.count or len(items)
        self.states = [QUEUED] * self.count
        self.rows: list[bytes] = []

    @property
    def is_ended(self) -> bool:
        return QUEUED not in self.states

    def document(self) -> JobDocument:
        counts = Counts(
            queued=self.states.count(QUEUED),
            done=self.states.count(DONE),
            failed=self.states.count(FAILED),
            cancelled=self.states.count(CANCELLED),
        )
        state = (
            "running" if counts.queued else "failed" if counts.failed else "cancelled" if counts.cancelled else "done"
        )
        ended = SUBMITTED if self.is_ended else None
        name, definition = self.submit.name, self.submit.definition
        return JobDocument(self.number, name, definition, state, self.count, counts, SUBMITTED, SUBMITTED, ended, None)


class Lab:
    """The coordinator. `path`: its socket, or None for a TCP port (`address`)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.cluster = "lab-cluster"
        self.data_url = ""
        self.jobs: dict[int, LabJob] = {}
        self.received: list[AnyMessage] = []
        self.greeting: Message | None = None
        """What is answered to Hello in place of Welcome."""
        self.refusal: tuple[str, str] | None = None
        self.cut_always: Callable[[AnyMessage], bool] | None = None
        """Cut the connection at each message for which it is true."""
        self.cut_before: Callable[[AnyMessage], bool] | None = None
        """Cut the connection, once, at the first message for which it is true, before anything is done."""
        self.cut_after: Callable[[AnyMessage], bool] | None = None
        """As above, after it has been done and before it is answered."""
        self._changed = threading.Condition()
        self._drafts: dict[tuple[int, int], tuple[Submit, list[Item]]] = {}
        self._listener: socket.socket | None = None
        self._connections: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._port = 0
        self._stopping = False

    @property
    def address(self) -> str:
        return str(self.path) if self.path else f"tcp://127.0.0.1:{self._port}"

    # ---- what tests do ----

    def start(self) -> None:
        """Listen; again after `stop`, with all jobs kept."""
        family = socket.AF_UNIX if self.path else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        if self.path:
            self.path.unlink(missing_ok=True)
            listener.bind(str(self.path))
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            self._port = listener.getsockname()[1]
        listener.listen()
        self._stopping = False
        self._listener = listener
        self._run(self._accept, listener)

    def stop(self) -> None:
        """Die: nothing listens any more, every connection breaks."""
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._stopping = True
        self.cut()
        for thread in self._threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()
        self._threads.clear()

    def cut(self) -> None:
        """Break every connection, go on listening."""
        with self._changed:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something that depends on received messages holds."""
        with self._changed:
            assert self._changed.wait_for(condition, BOUND_S), f"never came; received {self.received}"

    def wait_for_message(self, kind: type[Message], count: int = 1) -> None:
        self.wait_for(lambda: sum(isinstance(message, kind) for message in self.received) >= count)

    def end(self, job: int, indexes: list[int], results: list[Payload | None] | None = None, **columns: Any) -> None:
        """Let tasks end: done with these results, or as the columns of an Outcome say."""
        with self._changed:
            entry = self.jobs[job]
            outcome = Outcome(job, len(entry.rows) + 1, "worker-1", indexes, results=results or [], **columns)
            for place, index in enumerate(indexes):
                entry.states[index] = outcome.states[place] if outcome.states else DONE
            if outcome.sweep is not None:
                taken = outcome.states if outcome.sweep == QUEUED else [QUEUED]
                entry.states = [outcome.sweep if state in taken else state for state in entry.states]
            entry.rows.append(msgspec.msgpack.encode(outcome))
            self._changed.notify_all()

    # ---- the server ----

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with self._changed:
                key = connection.fileno()
                self._connections[key] = connection
            self._run(self._serve, key, connection)

    def _secured(self, connection: socket.socket) -> socket.socket | None:
        """The connection as it is to be spoken on; None if the peer was sent away."""
        return connection

    def _serve(self, key: int, raw: socket.socket) -> None:
        decoder = wire.Decoder()
        decoder.greeted()
        connection = self._secured(raw)
        if connection is None:
            with self._changed:
                del self._connections[key]
            return
        with self._changed:
            self._connections[key] = connection
        try:
            while data := connection.recv(65536):
                for message in decoder.receive(data):
                    if not self._take(key, connection, message):
                        return
        except (OSError, RemoteProtocolError):
            return
        finally:
            with self._changed:
                self._drafts = {draft: kept for draft, kept in self._drafts.items() if draft[0] != key}
                del self._connections[key]
            connection.close()

    def _take(self, key: int, connection: socket.socket, message: AnyMessage) -> bool:
        """Do and answer one message; False if the connection is to be cut."""
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()
            if self.cut_always is not None and self.cut_always(message):
                return False
            if self.cut_before is not None and self.cut_before(message):
                self.cut_before = None
                return False
            answers = self._answers(key, message)
            if self.cut_after is not None and self.cut_after(message):
                list(answers)
                self.cut_after = None
                return False
        # Outside the lock: an answer that waits for tests must not keep them out. One above a frame's size is the
        # test's mistake: it breaks the connection and shows up as an exception of this thread.
        for answer in answers:
            connection.sendall(wire.encode(answer))
        return True

    def _answers(self, key: int, message: AnyMessage) -> Iterator[Message]:
        if isinstance(message, HelloClient):
            welcome = Welcome(PROTOCOL_VERSION, self.cluster, "lab", 1, 15.0, self.data_url, 0.0)
            return iter([self.greeting or welcome])
        request = getattr(message, "request", 0)
        if self.refusal is not None:
            return iter([Refused(request, *self.refusal)])
        if isinstance(message, Submit):
            self._drafts[key, request] = (message, list(message.items))
            return iter(self._finish(key, request) if message.last else [])
        if isinstance(message, Items) and (key, request) not in self._drafts:
            return iter([])
        if isinstance(message, Items):
            self._drafts[key, request][1].extend(message.items)
            return iter(self._finish(key, request) if message.last else [])
        if isinstance(message, Cancel):
            entry = self.jobs[message.job]
            self.end(entry.number, [], sweep=CANCELLED)
            return iter([Reply(request, [msgspec.msgpack.encode(entry.document())])])
        if isinstance(message, Watch):
            return self._watch(message)
        if isinstance(message, Results):
            return self._results(message)
        if isinstance(message, Query):
            return iter([self._reply(message)])
        return iter([Goodbye("protocol", f"{type(message).__name__} is not for this lab")])

    def _finish(self, key: int, request: int) -> list[Message]:
        submit, items = self._drafts.pop((key, request))
        for entry in self.jobs.values():
            if entry.submit.request_id == submit.request_id:
                return [Accepted(request, entry.number, entry.count)]
        number = len(self.jobs) + 1
        self.jobs[number] = LabJob(number, submit, items)
        self._changed.notify_all()
        return [Accepted(request, number, self.jobs[number].count)]

    def _watch(self, message: Watch) -> Iterator[Message]:
        seen: list[list[int]] = []
        while True:
            with self._changed:
                entries = [self.jobs[number] for number in message.jobs]
                self._await_change(entries, seen)
                seen = [list(entry.states) for entry in entries]
                ended = all(entry.is_ended for entry in entries)
                documents = [msgspec.msgpack.encode(entry.document()) for entry in entries]
            yield Reply(message.request, documents, last=ended)
            if ended:
                return

    def _await_change(self, entries: list[LabJob], seen: list[list[int]]) -> None:
        assert self._changed.wait_for(lambda: self._stopping or [job.states for job in entries] != seen, BOUND_S)
        if self._stopping:
            raise ConnectionAbortedError

    def _results(self, message: Results) -> Iterator[Message]:
        entry, after = self.jobs[message.job], message.after

        def is_ready() -> bool:
            return len(entry.rows) > after or entry.is_ended or self._stopping

        while True:
            with self._changed:
                if message.wait:
                    assert self._changed.wait_for(is_ready, BOUND_S)
                if self._stopping:
                    raise ConnectionAbortedError
                # Two rows at a time, so that every test sees more than one answer.
                rows = entry.rows[after : after + 2]
                after += len(rows)
                ended = entry.is_ended and after == len(entry.rows)
            yield ResultRows(message.request, rows, after, ended)
            if ended or not message.follow:
                return

    def _reply(self, message: Query) -> Message:
        if message.noun == "status":
            status = StatusDocument(self.cluster, "lab", "0", 1, 3723.0, 0, 0, Counts(), 0.0)
            return Reply(message.request, [msgspec.msgpack.encode(status)])
        wanted = [message.job] if message.noun == "job" else list(self.jobs)
        if any(number not in self.jobs for number in wanted):
            return Refused(message.request, "unknown_job", f"there is no job {message.job}; see: dctl job list")
        return Reply(message.request, [msgspec.msgpack.encode(self.jobs[number].document()) for number in wanted])


class DataPort:
    """A data port in memory. `faults`: statuses to be answered first, in their order; 0 cuts the connection.

    With a `context` it speaks TLS; every request's Authorization is in `authorisations`.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.authorisations: list[str] = []
        self.hosts: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.requests: list[str] = []
        port = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(200 if self._name() in port.blobs else 404, b"")

            def do_GET(self) -> None:
                body = port.blobs.get(self._name())
                self._answer(404 if body is None else 200, body or b"")

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hashlib.sha256(body).hexdigest() != self._name():
                    self._answer(400, b"not what its name says")
                    return
                port.blobs[self._name()] = body
                self._answer(201, b"")

            def _name(self) -> str:
                return self.path.rpartition("/")[2]

            def _answer(self, status: int, body: bytes) -> None:
                port.requests.append(f"{self.command} {status}")
                port.authorisations.append(self.headers.get("Authorization", ""))
                port.hosts.append(self.headers.get("Host", ""))
                if port.faults:
                    status, body = port.faults.pop(0), b"a fault of the lab"
                    if not status:
                        self.close_connection = True
                        return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                """Tests read requests."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_arguments: Any) -> None:
                """A client that gives up in the middle is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(BOUND_S)


def in_background(*acts: Callable[[], Any]) -> threading.Thread:
    def act_in_turn() -> None:
        for act in acts:
            act()

    thread = threading.Thread(target=act_in_turn)
    thread.start()
    return thread


@contextlib.contextmanager
def running(path: Path | None) -> Iterator[Lab]:
    """A lab that listens, and is gone at the end."""
    lab = Lab(path)
    lab.start()
    try:
        yield lab
    finally:
        lab.stop()


def dctl(
    *arguments: str,
    stdin: bytes = b"",
    code: int = 0,
    environment: dict[str, str] | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run `dctl` as a process; its exit code must be `code`, and a traceback is never right."""
    ran = subprocess.run(
        [sys.executable, "-m", "dctl", *arguments],
        input=stdin,
        capture_output=True,
        timeout=BOUND_S,
        env=os.environ | {"PYTHONPATH": str(DAEMONS)} | (environment or {}) | variables,
        check=False,
    )
    said = ran.stderr.decode()
    assert "Traceback" not in said, said
    assert ran.returncode == code, f"dctl {arguments}: {ran.returncode}, not {code}; it said: {said}"
    return ran


_OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "dctl", *sys.argv[1:]])
"""
"""Starts `dctl` in a session whose terminal is its own: else Ctrl-C would reach nobody."""


class Terminal:
    """`dctl` on a terminal of its own; `text` is everything that it has shown so far."""

    def __init__(
        self, *arguments: str, columns: int = 80, environment: dict[str, str] | None = None, **variables: str
    ) -> None:
        self.text = ""
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._leader = leader
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environ | {"PYTHONPATH": str(DAEMONS), "TERM": "xterm"} | (environment or {}) | variables,
        )
        os.close(follower)

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def wait_for(self, wanted: str) -> None:
        """Read until `wanted` has been shown."""
        deadline = time.monotonic() + BOUND_S
        while wanted not in self.text:
            assert self._read(deadline), f"{wanted!r} was never shown, but {self.text!r}"

    def end(self) -> int:
        """Read until the process has ended; its exit code."""
        deadline = time.monotonic() + BOUND_S
        while self._read(deadline):
            pass
        os.close(self._leader)
        return self._process.wait(BOUND_S)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._leader], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more is shown after {self.text!r}"
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)
