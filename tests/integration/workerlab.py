"""A coordinator small enough to see through, and real dworker processes: what the worker's tests need.

The coordinator speaks the real protocol over a real socket, and does what a test tells it.
"""

import asyncio
import contextlib
import hashlib
import http.server
import os
import secrets
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from districomp.messages import (
    PROTOCOL_VERSION,
    Ack,
    AnyMessage,
    Assign,
    Define,
    Heartbeat,
    HelloWorker,
    Inventory,
    JobSpec,
    Message,
    Reports,
    Returned,
    Started,
    Welcome,
)
from districomp.model import Blob, Item, Payload
from districomp.stream import Connection
from districomp.taskdef import BundleFile, Definition, encode_definition
from tests.patience import PATIENCE_S

WAIT_S = PATIENCE_S

L = TypeVar("L", bound="Lab")


class Row(msgspec.Struct):
    """What was reported of one attempt."""

    lease: int
    index: int
    attempt: int
    reason: str
    exit_code: int | None
    signal: int | None
    started: float | None
    ended: float
    cpu_s: float | None
    memory_bytes: int | None
    stderr: bytes
    result: Payload | None


def rows(message: Reports) -> list[Row]:
    """A report's columns as rows, defaults filled in."""
    count = len(message.leases)

    def column(values: list[Any], default: Any) -> list[Any]:
        return values or [default] * count

    columns = (
        message.leases,
        message.indexes,
        column(message.attempts, 1),
        column(message.reasons, "done"),
        column(message.exit_codes, None),
        column(message.signals, None),
        column(message.started, None),
        message.ended,
        column(message.cpu_s, None),
        column(message.memory_bytes, None),
        column(message.stderr, b""),
        column(message.results, None),
    )
    return [Row(*values) for values in zip(*columns, strict=True)]


class DataPort:
    """A data port: blobs by digest, tasks' data by path, uploads kept. Notes requests, refuses `failures`, falsifies `lies`.

    With TLS whoever asks needs one of `rights`, and asks for it by one of `hosts`.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.rights: set[str] = set()
        self.shown: list[str] = []
        self.hosts: list[str] = []
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures = 0
        self.lies = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def is_refused(self) -> bool:
                owner.requests.append((self.command, self.path))
                if context is not None and not self.is_right():
                    return True
                if owner.failures > 0:
                    owner.failures -= 1
                    self.answer(503, b"not now")
                    return True
                return False

            def is_right(self) -> bool:
                right = self.headers.get("Authorization", "").removeprefix("Bearer ")
                owner.shown.append(right)
                owner.hosts.append(self.headers["Host"])
                if right not in owner.rights:
                    self.answer(401, b"show a grant")
                return right in owner.rights

            def do_GET(self) -> None:
                if not self.is_refused():
                    body = owner.files.get(self.path)
                    if body and owner.lies > 0:
                        owner.lies -= 1
                        body = bytes(len(body))
                    self.answer(404 if body is None else 200, body or b"")

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.is_refused():
                    owner.files[self.path] = body
                    self.answer(201)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'' if context is None else 's'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def add_blob(self, body: bytes) -> Blob:
        digest = hashlib.sha256(body)
        self.files[f"/blobs/{digest.hexdigest()}"] = body
        return Blob(digest.digest(), len(body))

    def add_bundle(self, files: dict[str, tuple[int, bytes]]) -> str:
        """Path -> (mode, content); the manifest's digest."""
        manifest = [
            BundleFile(path, mode, len(body), self.add_blob(body).sha256.hex()) for path, (mode, body) in files.items()
        ]
        return self.add_blob(msgspec.msgpack.encode(manifest)).sha256.hex()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Lab:
    """The coordinator's side of everything. One worker at a time is connected."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = "insecure: true\n"
        self.data = DataPort()
        self.cluster = a_cluster()
        self.lease_s = 15.0
        self.acknowledge = True
        self.answer_heartbeats = True
        self.greet = True
        self.hellos: list[HelloWorker] = []
        self.heard: list[AnyMessage] = []
        self.reported: dict[int, Row] = {}
        self.connection: Connection | None = None
        self.connections: list[Connection] = []
        self.processes: list[Worker] = []
        self._changed = asyncio.Event()
        self._next_lease = 1 << 40
        self._next_job = 1
        self._server: asyncio.Server | None = None
        self.port = 0

    # ---- as stream.Handler ----

    def opened(self, connection: Connection) -> None:
        connection.greeted()
        self.connections.append(connection)

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        for message in messages:
            self.heard.append(message)
            if isinstance(message, HelloWorker):
                self.hellos.append(message)
                if self.greet:
                    self.connection = connection
                    connection.send(self.welcome())
            elif isinstance(message, Heartbeat) and self.answer_heartbeats:
                connection.send(Heartbeat())
            elif isinstance(message, Reports):
                for row in rows(message):
                    self.reported[row.lease] = row
                if self.acknowledge:
                    connection.send(Ack([message.serial]))
        self._changed.set()

    def closed(self, connection: Connection, reason: str) -> None:
        if connection is self.connection:
            self.connection = None
        self._changed.set()

    def welcome(self) -> Welcome:
        return Welcome(PROTOCOL_VERSION, self.cluster, "lab", 1, self.lease_s, self.data.url, time.time())

    # ---- for tests ----

    async def listen(self) -> None:
        """Open the control port; the same one again after `hang_up`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, accepting=True), "127.0.0.1", self.port, start_serving=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def hang_up(self) -> None:
        """The coordinator goes away."""
        assert self._server is not None
        self._server.close()
        if self.connection is not None:
            self.connection.close()
        await self.until(lambda: self.connection is None)

    async def until(self, condition: Callable[[], Any], seconds: float = WAIT_S) -> None:
        """Wait until it holds; looked at whenever a message comes, and every few milliseconds for what comes otherwise."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s; heard {self.heard[-5:]}\n{self.logs()}"
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.02)

    def send(self, *messages: Message) -> None:
        assert self.connection is not None
        for message in messages:
            self.connection.send(message)

    def define(
        self,
        argv: list[str] | None = None,
        *,
        values: dict[str, Any] | None = None,
        numbers: Any = None,
        matrix: list[tuple[str, list[Any]]] | None = None,
        version_of: int | None = None,
        **rest: Any,
    ) -> int:
        """A new job; its number. `values`: the job's params. `rest`: fields of Definition, which is a version of its own or an earlier job's."""
        job = self._next_job
        self._next_job += 1
        digest = f"digest{version_of or job}"
        definition = Definition("lab", digest, "", **{"runner": "command", "argv": argv or ["true"]} | rest)
        self.send(Define(digest, encode_definition(definition)))
        self.send(JobSpec(job, digest, values or {}, numbers, matrix or []))
        return job

    def assign(self, job: int, items: list[Item] | int, first: int = 0, grants: list[str] | None = None) -> list[int]:
        """Leases for these items, or for so many tasks without; the leases."""
        count = items if isinstance(items, int) else len(items)
        lease = self._next_lease
        self._next_lease += count
        indexes = list(range(first, first + count))
        self.send(Assign(job, lease, indexes, items=[] if isinstance(items, int) else items, grants=grants or []))
        return list(range(lease, lease + count))

    async def ended(self, leases: list[int], seconds: float = WAIT_S) -> list[Row]:
        """Wait until all are reported; their rows."""
        await self.until(lambda: all(lease in self.reported for lease in leases), seconds)
        return [self.reported[lease] for lease in leases]

    async def run(self, argv: list[str], items: list[Item] | int = 1, **definition: Any) -> list[Row]:
        """Run tasks of a new definition; their rows."""
        return await self.ended(self.assign(self.define(argv, **definition), items))

    async def started(self, lease: int) -> None:
        """Wait until a Started names it; its process may not be there yet."""
        await self.until(lambda: any(lease in one.leases for one in self.messages(Started)))

    def mark(self, name: str = "mark") -> Path:
        """A file that a task can make to be heard: not beside the worker's own folder, where no task can make anything."""
        folder = self.folder / "marks"
        folder.mkdir(exist_ok=True)
        return folder / name

    def messages(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    def returned(self) -> list[int]:
        return [lease for message in self.messages(Returned) for lease in message.leases]

    def inventory(self) -> list[int]:
        return [lease for message in self.messages(Inventory) for lease in message.leases]

    async def join(self, *arguments: str, **options: Any) -> "Worker":
        """Start a worker and wait until it has joined."""
        count = len(self.hellos)
        worker = await self.start(*arguments, **options)
        await self.until(lambda: len(self.hellos) > count and self.connection is not None)
        await self.until(lambda: any(message.last for message in self.messages(Inventory)))
        return worker

    async def start(
        self,
        *arguments: str,
        coordinator: bool = True,
        state: str = "state",
        config: str = "",
        slots: int = 2,
        files: int = 900,
        path: str = "",
    ) -> "Worker":
        """Start a worker process, which may open so many files unless it asks for more."""
        folder = self.folder
        (folder / "config").mkdir(exist_ok=True)
        (folder / "config" / "dworker.yaml").write_text(self.settings + config)
        env = {
            "PATH": path or os.environ["PATH"],
            "DISTRICOMP_STATE_DIR": str(folder / state),
            "DISTRICOMP_CONFIG_DIR": str(folder / "config"),
            "DISTRICOMP_RUNTIME_DIR": str(folder / "run"),
            "SECRET": "of the daemon",
        }
        if "PYTHONPATH" in os.environ:  # another copy of the code is being tested
            env["PYTHONPATH"] = os.environ["PYTHONPATH"]
        # A mutant is imported from where it lies, by the worker too.
        env |= {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
        given = ["--coordinator", f"127.0.0.1:{self.port}"] if coordinator else []
        log = folder / f"worker{len(self.processes)}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *("sh", "-c", f'ulimit -Sn {files}; exec "$@"', "sh"),
                *(sys.executable, "-m", "dworker", "-v", "--slots", str(slots), *given, *arguments),
                env=env,
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
        worker = Worker(process, log, folder / state / "dworker")
        self.processes.append(worker)
        return worker

    def logs(self) -> str:
        return "\n".join(worker.log_text() for worker in self.processes)

    async def close(self) -> None:
        for worker in self.processes:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.wait()
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.close()
        await self.until(lambda: self.connection is None)
        self.data.close()


class Worker:
    """A dworker process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, state: Path) -> None:
        self.process = process
        self.log = log
        self.state = state

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self, seconds: float = WAIT_S) -> int:
        return await asyncio.wait_for(self.process.wait(), seconds)

    def memory_kib(self, field: str) -> int:
        """A line of its status: VmRSS now, VmHWM at the peak."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))

    def ticks(self) -> int:
        """Processor time that it used, in hundredths of a second."""
        return sum(map(int, Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    def spawn_server(self) -> int:
        """The pid of its spawn server."""
        return next(pid for pid in children(self.pid) if "spawnd" in command_line(pid))


def in_lab(test: Callable[[Lab], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Make a pytest function of a coroutine that wants a Lab; no process may outlive it."""
    return in_lab_of(Lab, test)


def in_lab_of(make: Callable[[Path], L], test: Callable[[L], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """The same for a Lab of another kind."""

    def run(tmp_path: Path) -> None:
        async def body() -> None:
            lab = make(tmp_path)
            await lab.listen()
            try:
                await test(lab)
            except BaseException:
                sys.stderr.write(lab.logs())
                raise
            finally:
                await lab.close()

        asyncio.run(body())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def a_cluster() -> str:
    """A cluster's id. Tests that run at the same time hear each other's mDNS."""
    return secrets.token_hex(13)


def children(pid: int) -> list[int]:
    """Its children, whichever of its threads has started them."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found += map(int, path.read_text().split())
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
