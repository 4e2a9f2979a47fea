"""The interface of the systems that are compared, and the place where one of them runs.

Owns what an adapter must say and what it is given. Knows no system. Standard library and the benchmark's own only.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

if TYPE_CHECKING:
    from bench.peers.installation import Installation
    from bench.processes import Processes

ROOT: Final = Path(__file__).resolve().parents[2]
READY_S: Final = 40.0
ANSWER_S: Final = 60.0


class PeerError(Exception):
    """A system under measurement did not do what it should; the message has the end of its log."""


class Driver:
    """Our end of a client's program (`driver.serve`)."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        """PeerError if it is not ready in time."""
        self.pid = process.pid
        self._process = process
        self._log = log
        self._text = b""
        if (answer := self._line(READY_S)) != "ready":
            raise PeerError(f"the client said {answer!r} instead of that it is ready")

    def ask(self, what: str, tasks: int) -> Any:
        """Seconds, or with `latency` the milliseconds of each. PeerError if it does not answer in time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {tasks}\n".encode())
        self._process.stdin.flush()
        return self._line(ANSWER_S, what)

    def _line(self, timeout_s: float, what: str = "starting") -> Any:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._text:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            text = os.read(fd, 1 << 20) if ready else b""
            if not text:
                how = "ended" if ready else f"has not answered within {timeout_s:g} s"
                raise PeerError(f"the client {how} ({what}): {_end_of(self._log)}")
            self._text += text
        line, _, self._text = self._text.partition(b"\n")
        return json.loads(line)


class Place:
    """Where one system runs once: a folder, its processes, how many one-slot workers. A context manager that ends it."""

    def __init__(self, there: "Installation", processes: "Processes", workers: int = 2) -> None:
        self.there = there
        self.folder = processes.folder
        self.workers = workers
        self.stack = contextlib.ExitStack()
        self.environment = there.environment()
        self._processes = processes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stack.close()
        finally:
            self._processes.stop()

    def start(self, name: str, *argv: str | Path, nobody: bool = False) -> int:
        """Start a program of the system, and return its process id."""
        return self._processes.start(name, list(argv), environment=self.environment, nobody=nobody).pid

    def start_workers(self, *argv: str | Path) -> None:
        """As many as wanted, all alike."""
        for number in range(self.workers):
            self.start(f"worker{number}", *argv)

    def drive(self, peer: "Peer", *arguments: str, venv: bool = False) -> Driver:
        """Start the peer's own client (`drive` of its module) with the number of workers at the end."""
        return self.drive_program(*self.module(peer, "drive", *arguments, str(self.workers), venv=venv))

    def drive_program(self, *argv: str | Path) -> Driver:
        """Start a client, and wait until it is ready."""
        process = self._processes.start("client", list(argv), environment=self.environment, piped=True)
        try:
            return Driver(process, self._processes.log("client"))
        except PeerError as error:
            others = [other for other in self._processes.ended() if other != "client"]
            reasons = [f"{other} has ended: {_end_of(self._processes.log(other))}" for other in others]
            raise PeerError("; ".join([str(error), *reasons])) from None

    def module(self, peer: "Peer", part: str, *arguments: str, venv: bool) -> list[str | Path]:
        """The command line of a part of a peer's module, by its environment's interpreter or by ours."""
        python = self.there.python(peer.name) if venv else Path(sys.executable)
        return [python, "-m", type(peer).__module__, part, *arguments]

    def log_text(self, name: str) -> str:
        """What one of its programs has logged so far."""
        return self._processes.log(name).read_text(encoding="utf-8", errors="replace")


class Running(NamedTuple):
    """A started system: its client, and the processes in which queued tasks lie."""

    driver: Driver
    keepers: list[int]


class Peer(ABC):
    """A system that is compared."""

    name: ClassVar[str]
    """Of the module, of `--only` and of the results."""
    title: ClassVar[str]
    durable: ClassVar[str]
    """Whether an acknowledged task survives the death of the machine."""
    note: ClassVar[str] = ""
    """What a reader must know to compare its figures."""
    tasks: ClassVar[Mapping[str, int]]
    """How many tasks each measure takes: `noop`, `true`, `map`, `latency`, `queue`; what is not there is not measured."""

    def install(self, there: "Installation") -> None:  # noqa: B027
        """Put what it needs into the installation's folder. InstallError if that cannot be done."""

    def missing(self, there: "Installation") -> str:
        """Why it cannot be measured; empty if it can."""
        return ""

    @abstractmethod
    def version(self, there: "Installation") -> str:
        """What was measured."""

    @abstractmethod
    def start(self, place: Place) -> Running:
        """Start it with the place's number of workers, and wait until it works. PeerError if it does not."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
    """Ask until it holds. PeerError if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise PeerError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(0.005)


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it logged nothing"
