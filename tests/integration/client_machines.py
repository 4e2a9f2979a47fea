"""A real, trusted coordinator as a process, other machines beside it, and workers that wait to be let in."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from districomp import enrolment
from districomp.client import Client
from districomp.documents import WorkerDocument
from districomp.identity import Identity
from tests.integration.client_cluster import Cluster, Elsewhere
from tests.integration.clientlab import BOUND_S, dctl

SETTINGS = """\
name: trust-tests
listen: {address: 127.0.0.1, port: 0}
web: {port: 0}
data: {port: 0}
discovery: {interfaces: [lo]}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator that is found by mDNS on loopback, without workers."""
    started = Cluster(tmp_path_factory.mktemp("trust"), SETTINGS)
    try:
        started.start_coordinator()
        yield started
    finally:
        started.stop()


@pytest.fixture(autouse=True)
def as_admin(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dctl` is on the coordinator's machine unless a test says otherwise."""
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", cluster.environment["DISTRICOMP_RUNTIME_DIR"])
    for name in ("DISTRICOMP_COORDINATOR", "DISTRICOMP_TOKEN_FILE", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> Elsewhere:
    """Another machine, whose name is that of the test."""
    return Elsewhere(tmp_path, request.node.name.replace("_", "-").replace("[", "-").strip("]")[:60])


@pytest.fixture
def lasting(cluster: Cluster) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Daemons that a test has started, ended with it."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        cluster.end(process)


def token(role: str, *options: str) -> str:
    return dctl("token", "create", role, "-q", *options).stdout.decode().strip()


def workers(cluster: Cluster) -> dict[str, WorkerDocument]:
    with Client(cluster.socket) as client:
        return {one.name: one for one in client.workers()}


def state_of(cluster: Cluster, name: str) -> str:
    one = workers(cluster).get(name)
    return one.state if one else ""


class PendingMachine:
    """A machine that knows the cluster's id and waits to be let in."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.words: list[str] = []
        self.outcome: list[Identity | BaseException] = []
        host, port = cluster.address.rsplit(":", 1)
        pin = str(json.loads(cluster.endpoint.read_text())["cluster"])

        async def ask() -> None:
            asking = enrolment.enrol(
                [(host, int(port))], role="worker", name=name, slots=1, cluster=pin, on_pending=self.words.append
            )
            self.outcome.extend(await asyncio.gather(asking, return_exceptions=True))

        self.thread = threading.Thread(target=lambda: asyncio.run(ask()))
        self.thread.start()
        cluster.wait_for(lambda: bool(self.words or self.outcome), "words")
        cluster.wait_for(lambda: bool(self.outcome) or state_of(cluster, name) == "pending", "pending worker")

    def identity(self) -> Identity:
        self.thread.join(BOUND_S)
        (identity,) = self.outcome
        assert isinstance(identity, Identity), identity
        return identity
