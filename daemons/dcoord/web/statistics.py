"""The numbers of the statistics page, gathered from the coordinator's documents: `/stats.json`, described in docs/http.md.

Owns the shape of that JSON, what anybody on the network may read (counts, names, rates: never data, arguments,
environment, addresses or logs) and the short history of the task rate. Must not know HTTP or HTML.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from typing import Any, Final, Protocol, TypeVar

import msgspec

from dcoord.web.figures import ENDED_JOB_STATES
from dcoord.web.link import Cluster, Question
from districomp.documents import (
    Counts,
    DefinitionDocument,
    JobDocument,
    StatusDocument,
    WorkerDocument,
    iso_time,
)
from districomp.errors import RefusedError, UnreachableError

HISTORY_STEP_S: Final = 2
HISTORY_STEPS: Final = 90
SHOWN_JOBS_MAX: Final = 25
SHOWN_WORKERS_MAX: Final = 100
SHOWN_DEFINITIONS_MAX: Final = 50
NAME_CHARS_MAX: Final = 120
PENDING: Final = "pending"

D = TypeVar("D")


class Link(Protocol):
    """What is needed of the link to the coordinator."""

    cluster: Cluster | None
    since: float

    @property
    def is_up(self) -> bool:
        """Whether the coordinator can be asked now."""

    async def ask(self, question: Question) -> list[bytes]:
        """The documents that answer a question."""


class JobRow(msgspec.Struct):
    """A job on the page. `definition` is its definition's name."""

    job: int
    name: str
    definition: str
    state: str
    tasks: int
    counts: Counts
    eta_s: float | None


class WorkerRow(msgspec.Struct):
    """A worker on the page. `worker` tells namesakes apart."""

    worker: str
    name: str
    state: str
    slots: int
    running: int
    last_seen_s: float


class FaultyDefinition(msgspec.Struct):
    """A definition whose file could not take effect; what is wrong is told to those who may read it."""

    name: str
    problems: int


class Coordinator(msgspec.Struct):
    """Whether it answers, and since when that is so."""

    reachable: bool
    since: str


class Jobs(msgspec.Struct):
    """Unended jobs first, then the newest: at most SHOWN_JOBS_MAX of `total`."""

    total: int = 0
    unended: int = 0
    shown: list[JobRow] = []


class Workers(msgspec.Struct):
    """At most SHOWN_WORKERS_MAX of `total`; `states` counts all of them.

    `pending` are beside these, and only counted: anybody may call itself anything while it waits to be let in.
    """

    total: int = 0
    states: dict[str, int] = {}
    shown: list[WorkerRow] = []
    pending: int = 0


class Definitions(msgspec.Struct):
    """How many there are, and which are faulty."""

    total: int = 0
    faulty: list[FaultyDefinition] = []


class Slots(msgspec.Struct):
    """Of all workers that are there: started attempts and room for them."""

    used: int = 0
    total: int = 0


class Rates(msgspec.Struct):
    """Tasks ended a second, oldest first, one value a step; null: not known."""

    step_s: int
    tasks_per_s: list[float | None]


class Statistics(msgspec.Struct):
    """The whole of `/stats.json`. With an unreachable coordinator the numbers are the last ones, of the time `at`."""

    cluster: str
    name: str
    version: str
    epoch: int
    insecure: bool
    coordinator: Coordinator
    at: str | None = None
    uptime_s: float = 0.0
    slots: Slots = msgspec.field(default_factory=Slots)
    tasks: Counts = msgspec.field(default_factory=Counts)
    tasks_per_s: float = 0.0
    rates: Rates = msgspec.field(default_factory=lambda: Rates(HISTORY_STEP_S, []))
    workers: Workers = msgspec.field(default_factory=Workers)
    jobs: Jobs = msgspec.field(default_factory=Jobs)
    definitions: Definitions = msgspec.field(default_factory=Definitions)


class RateHistory:
    """The rate at which tasks ended, from samples of how many have ended at irregular times.

    Nobody is asked while no page is open; a gap between two samples is its average.
    """

    def __init__(self, step_s: int = HISTORY_STEP_S, steps: int = HISTORY_STEPS) -> None:
        self._step_s = step_s
        self._steps = steps
        self._samples: deque[tuple[float, int]] = deque(maxlen=4 * steps)

    def add(self, at: float, ended: int) -> None:
        """A sample; `at` in seconds of a steady clock."""
        if self._samples and at - self._samples[-1][0] < self._step_s / 4:
            return
        if self._samples and ended < self._samples[-1][1]:  # jobs were removed: what was before has no meaning now
            self._samples.clear()
        self._samples.append((at, ended))

    def rates(self, now: float) -> list[float | None]:
        """One rate a step, oldest first; None before the first sample and after the last."""
        edge = now // self._step_s * self._step_s
        edges = [edge - self._step_s * (self._steps - i) for i in range(self._steps + 1)]
        ended = self._ended_at(edges)
        return [
            None if before is None or after is None else round((after - before) / self._step_s, 2)
            for before, after in itertools.pairwise(ended)
        ]

    def _ended_at(self, times: list[float]) -> list[float | None]:
        """The number ended at ascending times, on the line between the samples around each."""
        samples = self._samples
        found: list[float | None] = []
        i = 0
        for at in times:
            while i < len(samples) and samples[i][0] < at:
                i += 1
            if i == len(samples) or (i == 0 and samples[0][0] > at):
                found.append(None)
            elif i == 0:
                found.append(float(samples[0][1]))
            else:
                (t0, n0), (t1, n1) = samples[i - 1], samples[i]
                found.append(n0 + (n1 - n0) * (at - t0) / (t1 - t0))
        return found


class Gatherer:
    """Makes the Statistics of now; remembers the last for when the coordinator is away."""

    def __init__(self, link: Link, version: str, *, insecure: bool) -> None:
        self._link = link
        self._version = version
        self._insecure = insecure
        self._last: Statistics | None = None
        self._history = RateHistory()

    async def gather(self) -> Statistics:
        """The numbers as they are, or as they were when the coordinator last answered."""
        with contextlib.suppress(UnreachableError, RefusedError):  # the link knows whether the coordinator is there
            self._last = await self._ask()
        reachable = self._link.is_up
        cluster = self._link.cluster or Cluster("", "", 0)
        statistics = self._last or Statistics(
            cluster.id, cluster.name, self._version, cluster.epoch, self._insecure, _no
        )
        statistics.coordinator = Coordinator(reachable, iso_time(self._link.since) or "")
        statistics.rates = Rates(HISTORY_STEP_S, self._history.rates(time.monotonic()))
        return statistics

    async def _ask(self) -> Statistics:
        answers = await asyncio.gather(
            *(self._link.ask(Question(noun)) for noun in ("status", "jobs", "workers", "definitions"))
        )
        status = decode(answers[0], StatusDocument)[0]
        workers = decode(answers[2], WorkerDocument)
        counts = status.tasks
        self._history.add(time.monotonic(), counts.done + counts.failed + counts.cancelled + counts.skipped)
        return Statistics(
            cluster=status.cluster,
            name=_short(status.name),
            version=status.version,
            epoch=status.epoch,
            insecure=self._insecure,
            coordinator=_no,
            at=iso_time(time.time()),
            uptime_s=status.uptime_s,
            slots=Slots(sum(worker.running for worker in workers), status.slots),
            tasks=counts,
            tasks_per_s=status.tasks_per_s,
            workers=_workers(workers),
            jobs=_jobs(decode(answers[1], JobDocument)),
            definitions=_definitions(decode(answers[3], DefinitionDocument)),
        )


_no: Final = Coordinator(False, "")


def decode(documents: list[bytes], cls: type[D]) -> list[D]:
    """Documents from MessagePack; msgspec.MsgspecError if one is not of this type."""
    decoder = msgspec.msgpack.Decoder(cls)
    return [decoder.decode(document) for document in documents]


def to_json(value: Any) -> bytes:
    """A document, or a list of them, as JSON."""
    return msgspec.json.encode(value) + b"\n"


def _jobs(jobs: list[JobDocument]) -> Jobs:
    unended = [job for job in jobs if job.state not in ENDED_JOB_STATES]
    ended = [job for job in jobs if job.state in ENDED_JOB_STATES]
    shown = sorted(unended, key=lambda job: -job.job)[:SHOWN_JOBS_MAX]
    shown += sorted(ended, key=lambda job: -job.job)[: SHOWN_JOBS_MAX - len(shown)]
    rows = [
        JobRow(job.job, _short(job.name), _short(job.definition), job.state, job.tasks, job.counts, job.eta_s)
        for job in shown
    ]
    return Jobs(len(jobs), len(unended), rows)


def _workers(known: list[WorkerDocument]) -> Workers:
    workers = [worker for worker in known if worker.state != PENDING]
    states: dict[str, int] = {}
    for worker in workers:
        states[worker.state] = states.get(worker.state, 0) + 1
    shown = sorted(workers, key=lambda worker: (worker.name, worker.worker))[:SHOWN_WORKERS_MAX]
    rows = [
        WorkerRow(worker.worker, _short(worker.name), worker.state, worker.slots, worker.running, worker.last_seen_s)
        for worker in shown
    ]
    return Workers(len(workers), dict(sorted(states.items())), rows, len(known) - len(workers))


def _definitions(definitions: list[DefinitionDocument]) -> Definitions:
    faulty = [FaultyDefinition(_short(each.name), len(each.problems)) for each in definitions if each.problems]
    return Definitions(len(definitions), faulty[:SHOWN_DEFINITIONS_MAX])


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS_MAX else name[: NAME_CHARS_MAX - 1] + "…"
