"""Which server carries the web process: the same application on each, measured alike. `python -m bench.web`.

Prints the table of docs/decisions/001-web-server.md. The servers compared are tools of this measurement only:
`pip install aiohttp granian hypercorn uvicorn` puts them there; one that is missing is left out of the table.
"""

import argparse
import asyncio
import hashlib
import importlib
import importlib.util
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from bottle import Bottle

from dcoord.blobs import BlobStore
from dcoord.web.blob_routes import BlobRoutes
from dcoord.web.bridge import WsgiBridge
from dcoord.web.http1 import App, Receive, Scope, Send
from dcoord.web.rights import BLOBS

SERVERS: Final = ("ours", "aiohttp", "granian", "granian-embedded", "hypercorn", "uvicorn", "uvicorn-guarded")
NEEDS: Final = {
    "aiohttp": "aiohttp",
    "granian": "granian",
    "granian-embedded": "granian",
    "hypercorn": "hypercorn",
    "uvicorn": "uvicorn",
    "uvicorn-guarded": "uvicorn",
}
BLOB_BYTES: Final = 128 * 1024 * 1024
SILENT, HALF_OPEN, STALLED = 300, 100, 32
HALF_HEAD: Final = b"GET /page HTTP/1.1\r\nHost: localhost\r\nX-"
CUT_S: Final = 45.0
IDLE_S: Final = 10.0
ROUNDS: Final = 7


# ---- the server's process: `python -m bench.web --serve NAME PORT FOLDER` ----


def make_app(folder: Path) -> App:
    """Bottle behind the bridge, blobs streamed: what dcoord-web does, without its coordinator."""
    bottle = Bottle()
    bottle.get("/page", callback=lambda: "x" * 6000)
    pool = ThreadPoolExecutor(4)
    pages, blobs = WsgiBridge(bottle, pool, pool), BlobRoutes(BlobStore(folder), pool)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await (blobs if scope["path"].startswith(BLOBS) else pages)(scope, receive, send)

    return app


def served_app() -> App:
    """For servers that import the application by its name."""
    return make_app(Path(os.environ["BENCH_WEB_FOLDER"]))


def serve(name: str, port: int) -> None:
    """Run one server until SIGTERM."""
    if name == "granian":
        granian = _module("granian").Granian
        granian("bench.web:served_app", port=port, interface="asginl", factory=True, websockets=False).serve()
    elif name == "uvicorn":
        _module("uvicorn").run(
            served_app(), port=port, loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False
        )
    else:
        import uvloop

        from bench import web_servers

        others = {
            "aiohttp": web_servers.aiohttp,
            "granian-embedded": web_servers.granian_embedded,
            "hypercorn": web_servers.hypercorn,
            "uvicorn-guarded": web_servers.uvicorn_guarded,
        }
        uvloop.run(_serve(others.get(name, _ours), port))


async def _serve(server: Callable[[App, int, asyncio.Event], Awaitable[None]], port: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server(served_app(), port, ended)


async def _ours(app: App, port: int, ended: asyncio.Event) -> None:
    from dcoord.web.server import Listener

    listener = Listener(app, "bench")
    await listener.start("127.0.0.1", port)
    await ended.wait()
    await listener.stop()


def _module(name: str) -> Any:
    """A server's module: not installed where nobody compares servers, and not typed by us."""
    return importlib.import_module(name)


# ---- the measurement ----


class Running:
    """A server's process and all its children."""

    def __init__(self, name: str, folder: Path) -> None:
        self.port = _free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.web", "--serve", name, str(self.port)],
            env={**os.environ, "BENCH_WEB_FOLDER": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError):
                self.connect().close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"{name} does not listen")

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def sum_status(self, field: str) -> float:
        """The sum of a field of /proc/PID/status over all processes, in MB."""
        total = 0
        for pid in _tree(self.process.pid):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
        return total * 1024 / 1e6

    def cpu_s(self) -> float:
        """Processor time of all processes."""
        ticks = 0
        for pid in _tree(self.process.pid):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> tuple[float, int]:
        """SIGTERM: seconds until the end, and the exit status (-9: it had to be killed)."""
        began = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(15)
        except subprocess.TimeoutExpired:
            for pid in _tree(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            code = self.process.wait(5)
        return time.monotonic() - began, code


def measure(names: list[str], root: Path) -> list[dict[str, str]]:
    """The table's rows. Everything that others on the machine can disturb is taken in rounds over all servers."""
    servers = {name: Running(name, root / name) for name in names}
    rows = {name: {"server": name} for name in names}
    try:
        _measure_idle(servers, rows)
        _measure_rates(servers, rows)
        _measure_slow_peers(servers, rows)
        for name, cuts in cut_after_s(servers).items():
            rows[name]["cuts a silent / half-open peer after s"] = " / ".join(cuts)
    finally:
        for name, server in servers.items():
            with server.connect() as idle:
                ask(idle, b"/page")
                took_s, code = server.stop()
            rows[name]["SIGTERM s (exit)"] = f"{took_s:.2f} ({code})"
    return list(rows.values())


def _measure_idle(servers: dict[str, Running], rows: dict[str, dict[str, str]]) -> None:
    for server in servers.values():
        with server.connect() as connection:
            ask(connection, b"/page")
    time.sleep(2)
    before = {name: server.cpu_s() for name, server in servers.items()}
    time.sleep(IDLE_S)
    for name, server in servers.items():
        rows[name]["idle RSS MB"] = f"{server.sum_status('VmRSS'):.1f}"
        rows[name]["idle CPU %"] = f"{100 * (server.cpu_s() - before[name]) / IDLE_S:.1f}"


def _measure_rates(servers: dict[str, Running], rows: dict[str, dict[str, str]]) -> None:
    small: dict[str, list[float]] = {name: [] for name in servers}
    up: dict[str, list[float]] = {name: [] for name in servers}
    down: dict[str, list[float]] = {name: [] for name in servers}
    data = bytearray(os.urandom(1 << 20) * (BLOB_BYTES >> 20))
    for number in range(ROUNDS):
        data[0] = number
        blob = hashlib.sha256(data).hexdigest()
        for name, server in servers.items():
            small[name].append(requests_per_s(server))
            up[name].append(upload_mb_s(server, blob, data))
            down[name].append(download_mb_s(server, blob))
    for name, server in servers.items():
        rows[name]["GET /page req/s, one connection"] = f"{statistics.median(small[name]):,.0f}"
        rows[name]["up MB/s"] = f"{statistics.median(up[name]):,.0f}"
        rows[name]["down MB/s"] = f"{statistics.median(down[name]):,.0f}"
        rows[name]["peak RSS MB"] = f"{server.sum_status('VmHWM'):.1f}"


def _measure_slow_peers(servers: dict[str, Running], rows: dict[str, dict[str, str]]) -> None:
    blob = hashlib.sha256(bytes(BLOB_BYTES)).hexdigest()
    for name, server in servers.items():
        upload_mb_s(server, blob, bytearray(BLOB_BYTES))
        with slow_peers(server, blob):
            times = sorted(new_request_s(server) for _ in range(101))
            rows[name]["new request among slow peers ms, median / worst"] = (
                f"{1e3 * times[50]:.1f} / {1e3 * times[-1]:.1f}"
            )
            rows[name]["RSS then MB"] = f"{server.sum_status('VmRSS'):.1f}"


def ask(connection: socket.socket, target: bytes) -> int:
    """One keep-alive GET; the body's size."""
    connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        buffer += _some(connection.recv(65536))
    head, _, body = buffer.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    left = size - len(body)
    view = memoryview(bytearray(1 << 20))
    while left > 0:
        left -= _some(connection.recv_into(view))
    return size


def requests_per_s(server: Running) -> float:
    """Small requests one after the other on one connection, for half a second."""
    with server.connect() as connection:
        began, number = time.perf_counter(), 0
        while time.perf_counter() < began + 0.5:
            ask(connection, b"/page")
            number += 1
        return number / (time.perf_counter() - began)


def upload_mb_s(server: Running, name: str, data: bytearray) -> float:
    """One upload, with SHA-256 and fsync at the other end."""
    head = f"PUT {BLOBS}{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with server.connect() as connection:
        began = time.perf_counter()
        connection.sendall(head.encode())
        connection.sendall(data)
        answer = connection.recv(65536)
        if not answer.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(f"the upload failed: {answer[:200]!r}")
        return len(data) / (time.perf_counter() - began) / 1e6


def download_mb_s(server: Running, name: str) -> float:
    """One download."""
    with server.connect() as connection:
        began = time.perf_counter()
        return ask(connection, f"{BLOBS}{name}".encode()) / (time.perf_counter() - began) / 1e6


def new_request_s(server: Running) -> float:
    """A connection and its first answer."""
    began = time.perf_counter()
    with server.connect() as connection:
        ask(connection, b"/page")
    return time.perf_counter() - began


@contextmanager
def slow_peers(server: Running, name: str) -> Iterator[None]:
    """Peers that say nothing, half a request's head, or do not read the blob that they asked for."""
    connections = [server.connect() for _ in range(SILENT + HALF_OPEN + STALLED)]
    for connection in connections[SILENT:-STALLED]:
        connection.sendall(HALF_HEAD)
    for connection in connections[-STALLED:]:
        connection.sendall(f"GET {BLOBS}{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    time.sleep(1)
    try:
        yield
    finally:
        for connection in connections:
            connection.close()


def cut_after_s(servers: dict[str, Running]) -> dict[str, list[str]]:
    """When each server ends a connection that says nothing, and one that stops amid its head; 'never' after CUT_S."""
    began = time.monotonic()
    found = {name: ["never", "never"] for name in servers}
    open_ = {}
    for name, server in servers.items():
        for i, beginning in enumerate((b"", HALF_HEAD)):
            connection = server.connect()
            connection.sendall(beginning)
            connection.setblocking(False)
            open_[connection] = (name, i)
    while open_ and time.monotonic() < began + CUT_S:
        time.sleep(0.1)
        for connection, (name, i) in list(open_.items()):
            with suppress(BlockingIOError):
                with suppress(ConnectionError):
                    while connection.recv(65536):
                        pass
                found[name][i] = f"{time.monotonic() - began:.0f}"
                del open_[connection]
                connection.close()
    for connection in open_:
        connection.close()
    return found


def _some(got: Any) -> Any:
    if not got:
        raise ConnectionError("the server closed the connection")
    return got


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _tree(int(child)))]


def main() -> None:
    """Measure the servers asked for and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.web", description=__doc__)
    parser.add_argument("servers", nargs="*", default=SERVERS, help=f"of: {', '.join(SERVERS)}")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "PORT"), help="be one of the servers")
    parsed = parser.parse_args()
    if parsed.serve:
        serve(parsed.serve[0], int(parsed.serve[1]))
        return
    with tempfile.TemporaryDirectory() as root:
        here = [name for name in parsed.servers if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
        rows = measure(here, Path(root))
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, loopback"
    )
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row[column] for column in columns)} |")


if __name__ == "__main__":
    main()
