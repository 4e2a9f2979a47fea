"""A coordinator's core with hand-moved time: every message is encoded and decoded on its way, in and out."""

from collections.abc import Iterable
from typing import TypeVar

from msgspec.structs import replace

from dcoord.core.core import Core, Settings
from dcoord.core.effects import Close, Effect, ReadJob, ReadPayload, Send
from dcoord.core.events import DefinitionsChanged, Events, Gone, JobRead, PayloadRead, Received
from dcoord.core.records import (
    DefinitionRecord,
    DropRecord,
    FrontierRecord,
    Head,
    IdentityRecord,
    JobEndRecord,
    JobRecord,
    OutcomeRecord,
    PayloadRecord,
    Record,
    Restored,
    RestoredJob,
    ResumeRecord,
    TokenRecord,
    WorkerRecord,
)
from dcoord.core.rights import GUEST, Principal
from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Assign,
    Enrol,
    HelloClient,
    HelloGuest,
    HelloWeb,
    HelloWorker,
    Inventory,
    Message,
    Reports,
    Sealed,
    Submit,
)
from districomp.model import STATE_NAMES, Item, Machine
from districomp.taskdef import Definition, Param, Requires, with_digest

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Record)

SETTINGS = Settings("testcluster", "lab", 15.0, insecure=True)
SEAL_KEY = b"the key of all seals"
USER = "tester"
"""Who owns what `Lab.submit` submits."""


def definition(name: str = "work", **keys: object) -> Definition:
    """A small command definition."""
    fields: dict[str, object] = {"description": "", "runner": "command", "argv": ["true"], "digest": ""} | keys
    return with_digest(Definition(name=name, **fields))  # type: ignore[arg-type]


PLAIN = definition()
PARAMS = definition("params", params={"size": Param("int", min=1)}, argv=["true", "{size}"])
ONCE = definition("once", rerun="never")
ARM = definition("arm", requires=Requires(arch=("aarch64",)))
PICKY = definition("picky", requires=Requires(programs=("povray",), labels=("lab",)))


def through_the_wire(message: Message) -> Message:
    """The message as the other side gets it."""
    decoder = wire.Decoder()
    decoder.greeted()
    (decoded,) = decoder.receive(wire.encode(message))
    return decoded


def principal_of(message: Message) -> Principal | None:
    """Who sends such a greeting, if it is nobody else: workers are themselves, clients may do everything."""
    match message:
        case HelloWorker():
            return Principal("worker", identity=message.worker, name=message.name)
        case HelloClient():
            return Principal("admin", user=USER)
        case HelloWeb():
            return Principal("web")
        case HelloGuest() | Enrol():
            return GUEST
    return None


class Lab:
    """A core, its time, and all that it sent and recorded; `records` is what a journal would hold."""

    def __init__(self, restored: Restored | None = None, now: float = 1_000_000.0, **settings: object) -> None:
        self.now = now
        start = restored or Restored(1, SETTINGS.cluster, {}, [], [], 0, seal_key=SEAL_KEY)
        self.core = Core(replace(SETTINGS, **settings), start, now)
        self.sent: list[tuple[int, Message]] = []
        self.closed: list[Close] = []
        self.others: list[Effect] = []
        self.records: list[Record] = []
        self.sealed: list[tuple[str, Sealed]] = []
        """What each worker could prove after a restart."""
        self.serial = 0
        self.feed(DefinitionsChanged({d.name: d for d in (PLAIN, PARAMS, ONCE, ARM, PICKY)}))

    def feed(self, *events: Events) -> None:
        """One batch through the core, then a tick; chunks that it asks for are read from the records."""
        effects = self.core.handle_batch(events, self.now) + self.core.tick(self.now)
        self.core.check()
        self._take(effects)

    def _take(self, effects: list[Effect | Record]) -> None:
        reads: list[Events] = []
        for effect in effects:
            if isinstance(effect, Send):
                message = through_the_wire(effect.message)
                self.sent.append((effect.peer, message))
                if isinstance(message, Assign) and effect.peer in self.core.fleet.by_peer:
                    sealed = Sealed(message.job, message.lease, message.indexes, message.seal)
                    self.sealed.append((self.core.fleet.by_peer[effect.peer].id, sealed))
            elif isinstance(effect, Close):
                self.closed.append(effect)
            elif isinstance(effect, ReadPayload):
                reads.append(PayloadRead(effect.job, effect.first, self._items(effect.job, effect.first)))
            elif isinstance(effect, ReadJob):
                (job,) = [job for job in restore(self.records, 0, heads=True).jobs if job.record.job == effect.job]
                reads.append(JobRead(effect, job))
            elif isinstance(effect, Record):
                self.records.append(effect)
            else:
                self.others.append(effect)
        if reads:
            self.feed(*reads)

    def _items(self, job: int, first: int) -> list[Item]:
        for record in self.records:
            if isinstance(record, PayloadRecord) and (record.job, record.first) == (job, first):
                return record.items
        raise AssertionError(f"no chunk of job {job} begins at {first}")

    def receive(self, peer: int, *messages: Message, principal: Principal | None = None) -> None:
        """Messages of a peer, in one batch. `principal`: who it is; without, whoever its greeting fits.

        Who has not greeted yet does so first, as a client.
        """
        if peer not in self.core.principals and messages and not hasattr(messages[0], "version"):
            messages = (HelloClient(PROTOCOL_VERSION, "test"), *messages)
        self.feed(
            *(
                Received(peer, through_the_wire(m), self.now, "127.0.0.1:1", principal=principal or principal_of(m))  # type: ignore[arg-type]
                for m in messages
            )
        )

    def gone(self, peer: int) -> None:
        """A connection closed."""
        self.feed(Gone(peer, self.now))

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at each of the core's deadlines."""
        end = self.now + seconds
        while (due := self.core.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.feed()
        self.now = end
        self.feed()

    def take(self, kind: type[M], peer: int | None = None) -> list[M]:
        """The messages of a kind sent so far (to a peer), taken out."""
        found = [m for p, m in self.sent if isinstance(m, kind) and peer in (None, p)]
        self.sent = [(p, m) for p, m in self.sent if not (isinstance(m, kind) and peer in (None, p))]
        return found

    def recorded(self, kind: type[R]) -> list[R]:
        """The records of a kind, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    # ---- short forms ----

    def join(
        self, peer: int, worker: str = "", *, slots: int = 1, process: int = 1, inventory: bool = True,
        machine: Machine | None = None,
    ) -> None:  # fmt: skip
        """A worker that holds nothing joins."""
        name = worker or f"w{peer}"
        self.receive(peer, HelloWorker(PROTOCOL_VERSION, "", name, name, slots, machine or Machine(), process))
        if inventory:
            self.receive(peer, Inventory(0, [], [], [], [], True))

    def prove(self, peer: int, worker: str) -> None:
        """What a worker was ever given is shown by a peer, who has just greeted."""
        self.receive(peer, *(sealed for holder, sealed in self.sealed if holder == worker))

    def submit(self, count: int = 1, name: str = "work", **keys: object) -> int:
        """A job of `count` numbered tasks, or of `items`; its number."""
        self.receive(900, HelloClient(PROTOCOL_VERSION, "test"))
        fields: dict[str, object] = {"params": {}} | keys
        if "items" not in fields and "matrix" not in fields:
            fields |= {"count": count, "numbers": (0, 1)}
        self.receive(900, Submit(7, definition=name, **{"request_id": "", **fields}))  # type: ignore[arg-type]
        (accepted,) = self.take(Accepted)
        return accepted.job

    def leases(self, peer: int) -> list[tuple[int, int, int]]:
        """(token, job, index) of what was assigned to a peer since the last call."""
        return [(a.lease + k, a.job, index) for a in self.take(Assign, peer) for k, index in enumerate(a.indexes)]

    def report(
        self, peer: int, leases: Iterable[tuple[int, int, int]], reason: str = "done", **columns: object
    ) -> None:
        """Leases (as `leases` gives them) ended."""
        held = list(leases)
        self.serial += 1
        count = len(held)
        message = Reports(self.serial, held[0][1], [t for t, _, _ in held], [i for _, _, i in held])
        message.ended = [self.now] * count
        message.started = [self.now - 1.0] * count
        message.results = [b"%d" % i for _, _, i in held]
        if reason != "done":
            message.reasons = [reason] * count
        for key, value in columns.items():
            setattr(message, key, value)
        self.receive(peer, message)

    def restart(self) -> "Lab":
        """A new coordinator on the same journal."""
        lab = Lab(restore(self.records, self.core.epoch + 1), self.now)
        lab.records = list(self.records)
        lab.sealed = list(self.sealed)
        lab.serial = self.serial + 1000
        return lab


def restore(records: list[Record], epoch: int, *, heads: bool = False) -> Restored:
    """What a journal gives back for these records: the reference that the real journal is compared with."""
    restored = Restored(epoch, SETTINGS.cluster, {}, [], [], 0, seal_key=SEAL_KEY)
    chunks: dict[int, list[int]] = {}
    jobs: dict[int, RestoredJob] = {}
    workers: dict[str, WorkerRecord] = {}
    tokens: dict[str, TokenRecord] = {}
    identities: dict[str, IdentityRecord] = {}
    for record in records:
        if isinstance(record, DefinitionRecord):
            restored.definitions[record.digest] = record.body
        elif isinstance(record, PayloadRecord):
            restored.last_job = max(restored.last_job, record.job)
            chunks.setdefault(record.job, []).append(record.first)
        elif isinstance(record, DropRecord):
            chunks.pop(record.job, None)
        elif isinstance(record, JobRecord):
            restored.last_job = max(restored.last_job, record.job)
            jobs[record.job] = RestoredJob(record, 0, None, chunks.get(record.job, []), [], 0, None)
        elif isinstance(record, FrontierRecord):
            jobs[record.job].frontier, jobs[record.job].started = record.frontier, record.started
        elif isinstance(record, OutcomeRecord):
            o = record.outcome
            jobs[o.job].heads.append(Head(o.serial, o.indexes, o.states, o.reasons, o.sweep))
            jobs[o.job].last_serial = o.serial
        elif isinstance(record, JobEndRecord):
            jobs[record.job].end = record
        elif isinstance(record, ResumeRecord):
            jobs[record.job].end = None
        elif isinstance(record, WorkerRecord):
            workers[record.worker] = record
        elif isinstance(record, TokenRecord):
            tokens[record.id] = record
        elif isinstance(record, IdentityRecord):
            identities[record.id] = record
    for job in jobs.values():
        if job.end is not None and not heads:
            job.heads, job.chunks = [], []
            job.record = replace(job.record, params={}, numbers=None, max_fails=None, matrix=[])
    restored.jobs = list(jobs.values())
    restored.workers = [record for record in workers.values() if record.present]
    restored.tokens = list(tokens.values())
    restored.identities = list(identities.values())
    return restored


def counts(lab: Lab, job: int) -> dict[str, int]:
    """A job's tasks by state, those states that have any."""
    return {n: count for n, count in zip(STATE_NAMES, lab.core.jobs[job].counts, strict=True) if count}
