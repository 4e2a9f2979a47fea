"""A real `dcoord` process, and peers that speak the protocol to it by hand over real sockets."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from demo.cluster import Cluster, wait_until
from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    Assign,
    HelloClient,
    HelloWorker,
    Inventory,
    Message,
    Reports,
    Sealed,
    Submit,
    Welcome,
)
from districomp.model import Machine
from tests.patience import PATIENCE_S

M = TypeVar("M")
SILENCE_S = PATIENCE_S


class Peer:
    """A blocking connection; `expect` waits for the next message of a kind and keeps the others aside."""

    def __init__(self, where: tuple[str, int] | Path) -> None:
        if isinstance(where, Path):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(str(where))
        else:
            self._socket = socket.create_connection(where)
        self._socket.settimeout(SILENCE_S)
        self._decoder = wire.Decoder()
        self._decoder.greeted()
        self._aside: list[AnyMessage] = []

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, *messages: Message) -> None:
        self._socket.sendall(b"".join(wire.encode(message) for message in messages))

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def has(self, kind: type[Message]) -> bool:
        """Whether one of these came while another was expected."""
        return any(isinstance(message, kind) for message in self._aside)

    def expect(self, kind: type[M]) -> M:
        deadline = time.monotonic() + SILENCE_S
        while True:
            for place, message in enumerate(self._aside):
                if isinstance(message, kind):
                    del self._aside[place]
                    return message
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
            data = self._socket.recv(65536)
            assert data, f"closed before a {kind.__name__} came; had {self._aside}"
            self._aside += self._decoder.receive(data)

    def is_closed(self) -> bool:
        """Whether the other side ends the connection; waits for it."""
        try:
            while self._socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


def proof(assign: Assign) -> Sealed:
    """What a worker shows of an Assign after the coordinator's restart."""
    return Sealed(assign.job, assign.lease, assign.indexes, assign.seal)


class Lab:
    """A cluster's coordinator for one test."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._serial = time.monotonic_ns()

    @property
    def control(self) -> tuple[str, int]:
        address, port = self.cluster.endpoint()["control"]
        return address, port

    def client(self) -> Peer:
        peer = Peer(self.cluster.runtime / "control.sock")
        peer.send(HelloClient(PROTOCOL_VERSION, "test"))
        peer.expect(Welcome)
        return peer

    def worker(self, name: str = "w1", slots: int = 1, *, process: int = 1, inventory: bool = True) -> Peer:
        peer = Peer(self.control)
        peer.send(HelloWorker(PROTOCOL_VERSION, "", name, name, slots, Machine(), process))
        peer.expect(Welcome)
        if inventory:
            peer.send(Inventory(0, [], [], [], [], True))
        return peer

    def submit(self, count: int = 1, request_id: str = "") -> int:
        with self.client() as client:
            client.send(Submit(1, request_id, "shell", {"argv": ["true"]}, numbers=(0, 1), count=count))
            return client.expect(Accepted).job

    def report(self, assign: Assign, results: list[bytes]) -> Reports:
        self._serial += 1
        leases = list(range(assign.lease, assign.lease + len(assign.indexes)))
        now = time.time()
        return Reports(
            self._serial, assign.job, leases, assign.indexes, started=[now] * len(leases), ended=[now] * len(leases),
            results=list(results),
        )  # fmt: skip

    def kill_coordinator(self) -> None:
        assert self.cluster.coordinator is not None
        self.cluster.coordinator.kill()


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A running coordinator that is ended, and must end well, after the test.

    Workers by hand send no heartbeats: its lease is longer than a busy machine is slow, or the fixture's parameter.
    """
    with Cluster(tmp_path, lease=getattr(request, "param", "60s"), insecure=True) as cluster:
        cluster.start_coordinator()
        # On a busy machine it may be ready before its web server is.
        wait_until(lambda: cluster.endpoint()["web_pid"], "dcoord-web")
        yield Lab(cluster)
