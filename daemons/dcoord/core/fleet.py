"""The workers: who is connected, what each holds, who has room.

Knows leases only as things that a worker holds; what they mean is the job's and `reports.py`'s.
"""

from dcoord.core.task import Lease
from districomp.messages import HelloWorker, Machine

LOST_WORKERS_KEPT = 1000
"""Workers that are gone stay in the list for people, the newest so many."""
KNOWN_MAX = 512
"""A worker keeps the newest so many job specs and definitions (and those in use); what is older is sent again."""


class Worker:
    """One worker, by its lasting id. `peer` is its connection, 0 while it has none."""

    __slots__ = (
        "address",
        "heard",
        "id",
        "is_lost",
        "is_ready",
        "known_definitions",
        "known_jobs",
        "leases",
        "machine",
        "name",
        "peer",
        "process",
        "recall_after",
        "slots",
        "started",
    )

    def __init__(self, worker: str) -> None:
        self.id = worker
        self.name = ""
        self.slots = 0
        self.process = 0
        self.machine = Machine()
        self.address = ""
        self.peer = 0
        self.heard = 0.0
        self.is_ready = False
        """Whether it has said what it holds, so that it may be given more."""
        self.is_lost = False
        self.leases: dict[int, Lease] = {}
        """By token, in the order given."""
        self.started = 0
        """Leases that the worker said it has started."""
        self.recall_after = 0.0
        """When it may be asked again to give unstarted leases back."""
        self.known_jobs: dict[int, None] = {}
        self.known_definitions: dict[str, None] = {}

    def greet(self, hello: HelloWorker, peer: int, address: str, at: float) -> None:
        """Take what a greeting says."""
        self.name, self.slots, self.machine = hello.name, hello.slots, hello.machine
        self.process, self.peer, self.address, self.heard = hello.process, peer, address, at
        self.is_ready = self.is_lost = False
        self.known_jobs.clear()
        self.known_definitions.clear()

    @property
    def state(self) -> str:
        """The worker's state as people read it."""
        if self.is_lost:
            return "lost"
        return "busy" if self.started else "idle"

    def mark_started(self, lease: Lease, at: float) -> None:
        """The worker says that it runs a lease."""
        if lease.started is None:
            self.started += 1
        lease.started = at

    def drop(self, token: int) -> Lease | None:
        """The worker does not hold this lease any more."""
        lease = self.leases.pop(token, None)
        if lease is not None and lease.started is not None:
            self.started -= 1
        return lease


class Fleet:
    """All workers, by id and by connection."""

    def __init__(self) -> None:
        self.by_id: dict[str, Worker] = {}
        self.by_peer: dict[int, Worker] = {}
        self.roomy: dict[str, Worker] = {}
        """Workers that may be given something; those found full are taken out until they report."""
        self.surplus: dict[str, Worker] = {}
        """Workers that may hold more than they can run at once; looked through when another is idle."""
        self.lost: dict[str, Worker] = {}

    def get(self, worker: str) -> Worker:
        """The worker with this id, new or known."""
        found = self.by_id.get(worker)
        if found is None:
            found = self.lost.pop(worker) if worker in self.lost else Worker(worker)
            self.by_id[worker] = found
        return found

    def attach(self, worker: Worker, hello: HelloWorker, peer: int, address: str, at: float) -> None:
        """A worker's connection is accepted."""
        self.detach(worker)
        worker.greet(hello, peer, address, at)
        self.by_peer[peer] = worker

    def detach(self, worker: Worker) -> None:
        """A worker has no connection now; what it holds it keeps until its lease has passed."""
        self.by_peer.pop(worker.peer, None)
        self.roomy.pop(worker.id, None)
        worker.peer = 0
        worker.is_ready = False

    def forget(self, worker: Worker) -> None:
        """A worker is lost; only people still want to see it."""
        assert not worker.leases
        self.detach(worker)
        worker.is_lost = True
        worker.started = 0
        self.by_id.pop(worker.id, None)
        self.surplus.pop(worker.id, None)
        self.lost[worker.id] = worker
        if len(self.lost) > LOST_WORKERS_KEPT:
            del self.lost[next(iter(self.lost))]

    def make_roomy(self, worker: Worker) -> None:
        """A worker may have room again."""
        if worker.is_ready:
            self.roomy[worker.id] = worker

    def check(self) -> None:
        """Every invariant of the fleet; AssertionError names the broken one."""
        for peer, worker in self.by_peer.items():
            assert worker.peer == peer
            assert self.by_id.get(worker.id) is worker
        for worker in self.by_id.values():
            held = sum(lease.started is not None for lease in worker.leases.values())
            assert worker.started == held, f"worker {worker.id} counts {worker.started} started, holds {held}"
            assert not worker.is_lost
        for worker in self.roomy.values():
            assert worker.is_ready and worker.peer
