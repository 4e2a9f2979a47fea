"""The workers: who is connected, what each holds, who has room, and for what.

Knows leases only as things that a worker holds; what they mean is the job's and `reports.py`'s.
"""

from msgspec.structs import replace

from dcoord.core.job import MEAN_WEIGHT
from dcoord.core.task import Lease
from districomp.messages import HelloWorker
from districomp.model import Machine
from districomp.taskdef import Requires

LOST_WORKERS_KEPT = 1000
"""Workers that are gone stay in the list for people, the newest so many."""
KNOWN_MAX = 512
"""A worker keeps the newest so many job specs and definitions (and those in use); what is older is sent again."""

MEANS_MAX = 16
"""A worker's own mean times are kept of so many jobs."""
RECALL_PAUSE_S = 0.1
"""Between two recalls from one worker, which may have begun meanwhile what it was asked to give back."""
RECALL_PAUSE_S_MAX = 5.0
"""Twice as long after each that it had nothing to answer to: what it holds is in the hands of its programs."""


class Worker:
    """One worker, by its lasting id. `peer` is its connection, 0 while it has none."""

    __slots__ = (
        "address",
        "asked",
        "heard",
        "id",
        "is_lost",
        "is_ready",
        "known_definitions",
        "known_jobs",
        "leases",
        "machine",
        "means",
        "name",
        "peer",
        "process",
        "programs",
        "recall_after",
        "recall_pause_s",
        "recalls",
        "sealed",
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
        self.recall_pause_s = RECALL_PAUSE_S
        self.recalls = 0
        """Recalls that it has not answered."""
        self.means: dict[int, float] = {}
        """How long attempts take here, by job, the last few: machines differ."""
        self.known_jobs: dict[int, None] = {}
        self.known_definitions: dict[str, None] = {}
        self.programs: dict[str, bool] = {}
        """Whether the machine has a program, as far as it has said."""
        self.asked: dict[str, None] = {}
        """Programs whose answer is awaited."""
        self.sealed: dict[int, tuple[int, int]] = {}
        """Leases of before a restart that it has proved: their job and index. Until its inventory is complete."""

    def greet(self, hello: HelloWorker, peer: int, address: str, at: float) -> None:
        """Take what a greeting says."""
        self.name, self.slots, self.machine = hello.name, hello.slots, hello.machine
        self.process, self.peer, self.address, self.heard = hello.process, peer, address, at
        self.is_ready = self.is_lost = False
        self.recalls = 0
        self.known_jobs.clear()
        self.known_definitions.clear()
        self.programs.clear()
        self.asked.clear()
        self.sealed.clear()

    def add_labels(self, labels: list[str]) -> None:
        """Give it the labels of the token that it came with, beside its own."""
        missing = [label for label in labels if label not in self.machine.labels]
        if missing:
            self.machine = replace(self.machine, labels=[*self.machine.labels, *missing])

    def lacks(self, requires: Requires) -> str:
        """What the machine is known to lack of a requirement, for people; '' if nothing is known to be missing."""
        if requires.arch and self.machine.arch not in requires.arch:
            return f"processor {' or '.join(requires.arch)}"
        for label in requires.labels:
            if label not in self.machine.labels:
                return f"label {label}"
        for program in requires.programs:
            if self.programs.get(program) is False:
                return f"program {program}"
        return ""

    def unasked(self, requires: Requires) -> list[str]:
        """Programs of a requirement that the machine was not asked about."""
        return [p for p in requires.programs if p not in self.programs and p not in self.asked]

    def meets(self, requires: Requires) -> bool:
        """Whether the machine is known to have all that is required."""
        return not self.lacks(requires) and all(self.programs.get(program) for program in requires.programs)

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

    def learn(self, job: int, mean_s: float) -> None:
        """Attempts of a job took so long here."""
        before = self.means.pop(job, mean_s)
        self.means[job] = before + MEAN_WEIGHT * (mean_s - before)
        if len(self.means) > MEANS_MAX:
            del self.means[next(iter(self.means))]

    def gave_back(self, count: int) -> None:
        """It has answered a recall with so many leases."""
        self.recalls -= 1
        self.recall_pause_s = RECALL_PAUSE_S if count else min(RECALL_PAUSE_S_MAX, 2 * self.recall_pause_s)

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
        self.roomy: dict[Requires, dict[str, Worker]] = {}
        """By requirement of a job not ended: workers that meet it and may be given something, until they are full."""
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
        self.make_full(worker)
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
        """A worker may have room again, or meet more than before."""
        if worker.is_ready:
            for requires, workers in self.roomy.items():
                if worker.id not in workers and worker.meets(requires):
                    workers[worker.id] = worker

    def leave_alone(self, worker: Worker) -> None:
        """A worker is given nothing more until it greets again."""
        worker.is_ready = False
        self.make_full(worker)

    def make_full(self, worker: Worker) -> None:
        """A worker has no room, or is not there."""
        for workers in self.roomy.values():
            workers.pop(worker.id, None)

    def make_last(self, worker: Worker, requires: Requires) -> None:
        """A worker was given something and has room left: of this requirement the others are served before it."""
        roomy = self.roomy[requires]
        roomy[worker.id] = roomy.pop(worker.id)

    def require(self, requires: Requires) -> None:
        """A job has this requirement: find out who meets it. Looks at every worker, once a requirement."""
        if requires not in self.roomy:
            self.roomy[requires] = {w.id: w for w in self.by_peer.values() if w.is_ready and w.meets(requires)}

    def release(self, requires: Requires) -> None:
        """No job has this requirement any more."""
        self.roomy.pop(requires, None)

    def check(self) -> None:
        """Every invariant of the fleet; AssertionError names the broken one."""
        for peer, worker in self.by_peer.items():
            assert worker.peer == peer
            assert self.by_id.get(worker.id) is worker
        for worker in self.by_id.values():
            held = sum(lease.started is not None for lease in worker.leases.values())
            assert worker.started == held, f"worker {worker.id} counts {worker.started} started, holds {held}"
            assert not worker.is_lost
        for requires, workers in self.roomy.items():
            for worker in workers.values():
                assert worker.is_ready and worker.peer and worker.meets(requires)
