"""A real cluster of two workers for the tests of `districomp.Executor`, and what they look at."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import Cluster, wait_until
from districomp import Client, Executor

THREAD = "districomp-executor"


class ExecutorLab:
    """A cluster and executors on it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.notes = folder / "notes"
        """Where calls may write: it is there before the workers close all around their keys."""
        self.notes.mkdir()

    @property
    def socket(self) -> str:
        """The control socket."""
        return str(self.cluster.runtime / "control.sock")

    def executor(self) -> Executor:
        """One with a client of its own."""
        return Executor(self.socket)

    def client(self) -> Client:
        """One beside it."""
        return Client(self.socket)

    def wait_for(self, path: Path) -> str:
        """What a call writes to a file, once it has."""
        wait_until(lambda: path.exists() and path.read_text(), f"{path} to be written")
        return path.read_text()


@contextlib.contextmanager
def running(folder: Path, *, lease: str = "15s") -> Iterator[ExecutorLab]:
    """Two workers of two slots that have joined."""
    with Cluster(folder, lease=lease) as cluster:
        lab = ExecutorLab(cluster, folder)
        cluster.start_coordinator()
        for name in ("w1", "w2"):
            cluster.start_worker(name, slots=2)
        cluster.wait_for_workers(2)
        yield lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorLab]:
    """One for all tests of a module that break nothing of it."""
    with running(tmp_path_factory.mktemp("executor")) as lab:
        yield lab
        wait_until(lambda: not any(thread.name == THREAD for thread in threading.enumerate()), "every thread to end")


@pytest.fixture
def executor(lab: ExecutorLab) -> Iterator[Executor]:
    """A test's own."""
    executor = lab.executor()
    yield executor
    executor.shutdown(cancel_futures=True)  # a test that failed left calls that never end


@pytest.fixture
def notes(lab: ExecutorLab, request: pytest.FixtureRequest) -> Path:
    """A folder of a test's own that its calls may write to."""
    folder = lab.notes / str(request.node.name)
    folder.mkdir()
    return folder


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def writes_its_pid_and_sleeps(path: str) -> None:
    """A call that tells who runs it, and does not end by itself."""
    whole = Path(path)
    part = whole.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(whole)
    time.sleep(600)
