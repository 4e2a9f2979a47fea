"""The coordinator's core: events in, effects and records out. No I/O, no clock, no randomness.

The driver's whole contract: `handle_batch` with what has arrived, `tick` for the timers and ONE placement
pass, commit the records among the effects, only then carry out the rest; call again at `deadline`.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Final

import msgspec

from dcoord.core import access, administer, cancel, enrol, join, place, reports, seals, submit
from dcoord.core.backlog import Backlog
from dcoord.core.effects import Close, Effect, Send
from dcoord.core.events import (
    AuthoritiesChanged,
    DefinitionsChanged,
    Degraded,
    Events,
    Gone,
    JobRead,
    PayloadRead,
    Received,
    SpaceLeft,
)
from dcoord.core.fleet import Fleet, Worker
from dcoord.core.job import Job
from dcoord.core.records import JobEndRecord, Record, Restored, WorkerRecord
from dcoord.core.rights import GUEST, Principal, may
from dcoord.core.trust import Trust
from districomp.errors import RemoteProtocolError
from districomp.messages import (
    PROTOCOL_VERSION,
    Ack,
    AskGrant,
    Cancel,
    Enrol,
    Goodbye,
    Has,
    Heartbeat,
    HelloClient,
    HelloGuest,
    HelloWeb,
    HelloWorker,
    Inventory,
    Items,
    Message,
    Query,
    Refused,
    Renew,
    Reports,
    Results,
    Retry,
    Returned,
    Sealed,
    Started,
    Submit,
    Watch,
    Welcome,
)
from districomp.model import RUNNING, lease_token
from districomp.taskdef import Definition, Requires, decode_definition

RATE_WINDOW_S: Final = 10

# Questions are answered by the driver; a worker that was just declared lost may still be heard while its
# connection is being closed.
_NOT_FOR_THE_CORE: Final = (
    Query,
    Watch,
    Results,
    Goodbye,
    Reports,
    Heartbeat,
    Started,
    Returned,
    Inventory,
    Has,
    Sealed,
)


class Settings(msgspec.Struct, frozen=True):
    """What the core must know of the configuration. `cluster` is the id, `name` what people call it."""

    cluster: str
    name: str
    lease_s: float = 15.0
    insecure: bool = False
    """Everybody is believed, and nobody is enrolled."""
    grant_key: bytes = b""
    certificate_s: float = 30 * 86400.0
    """How long a certificate is good."""


class Core:
    """All state of a coordinator. Attributes are read freely by the modules of this package and by `view.py`."""

    def __init__(self, settings: Settings, restored: Restored, now: float, *, next_lease: int = 0) -> None:
        """Start from what the journal knows. `next_lease`: tokens below it are of before (a rebuild within an epoch)."""
        self.settings = settings
        self.now = now
        self.begun = now
        self.epoch = restored.epoch
        self.degraded = ""
        self.trust = Trust(restored.tokens, restored.identities, insecure=settings.insecure)
        self.principals: dict[int, Principal] = {}
        """Who each connection has proved to be; whoever is not here is not heard."""
        self.certificates_due: float | None = None
        """When the next certificate of a connection ends."""
        self.fleet = Fleet()
        self.backlog = Backlog()
        self.jobs: dict[int, Job] = {}
        self.active: dict[int, Job] = {}
        self.last_job = restored.last_job
        self.request_ids: dict[str, int] = {}
        self.definitions: dict[str, Definition] = {}
        self.recorded_definitions: dict[str, Definition] = {}
        self.drafts: dict[tuple[int, int], submit.Draft] = {}
        self.repeats: dict[tuple[int, int], int] = {}
        self.answers: list[tuple[int, int, int]] = []
        """(peer, request, job): carried out, for the driver to answer with the job's document after the commit."""
        self.asking: dict[Requires, None] = {}
        """Requirements of whose programs machines are asked again from time to time."""
        self.inventories: dict[str, dict[int, None]] = {}
        self.returning: dict[str, str] = {}
        """Workers (id: name) that were here before the restart and have not said yet what they hold."""
        self.doubt_until = now + settings.lease_s
        """When what a worker may have from before the restart is leased anew."""
        self.next_lease = max(next_lease, lease_token(self.epoch, 0))
        self.fence = self.next_lease
        """Lease tokens below it are of before the last restart."""
        self.seal_key = restored.seal_key
        self.effects: list[Effect | Record] = []
        self.changed: dict[int, None] = {}
        """Jobs whose document changed since the driver last looked; it clears it."""
        self.leased = 0
        self.kept_bytes = 0
        self.free_bytes = 1 << 62
        self.is_short_of_space = False
        self.mean_result_bytes_max = 4096.0
        self.refused_reports = 0
        self.recall_look = 0.0
        """When to look again for tasks to take back, at the earliest."""
        self.is_recall_due = False
        self.data_url = ""
        """Where the data port is; the driver sets it."""
        self._acks: dict[int, list[int]] = {}
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._timer_count = 0
        self._finished: dict[int, int] = {}
        self._requirers: dict[Requires, int] = {}
        self._is_resumed = False
        self._restore(restored)

    # ---- the driver's side ----

    def handle_batch(self, batch: Iterable[Events], now: float) -> list[Effect | Record]:
        """Take in what happened, in order; what is to be written and done. No leases yet: `tick` gives them."""
        self.now = now
        for event in batch:
            if isinstance(event, Received):
                self._on_received(event)
            elif isinstance(event, Gone):
                self._on_gone(event.peer)
            elif isinstance(event, PayloadRead):
                self._on_payload(event)
            elif isinstance(event, JobRead):
                cancel.on_job_read(self, event)
            elif isinstance(event, DefinitionsChanged):
                self.definitions = event.definitions
            elif isinstance(event, SpaceLeft):
                self.free_bytes = event.free_bytes
            elif isinstance(event, AuthoritiesChanged):
                administer.on_authorities_changed(self, event)
            elif isinstance(event, Degraded):
                self._on_degraded(event)
        for peer, serials in self._acks.items():
            self.effects.append(Send(peer, Ack(serials)))
        self._acks.clear()
        return self._take_effects()

    def tick(self, now: float) -> list[Effect | Record]:
        """Let time pass: timers that are due, then one placement pass."""
        self.now = now
        if not self.degraded:
            if not self._is_resumed:
                self._resume()
            while self._timers and self._timers[0][0] <= now:
                heappop(self._timers)[2](now)
            place.place(self, now)
        return self._take_effects()

    def deadline(self) -> float | None:
        """When `tick` is due next (Unix seconds); None: never, unless something arrives."""
        return self._timers[0][0] if self._timers and not self.degraded else None

    def check(self) -> None:
        """Every invariant; AssertionError names the broken one."""
        self.fleet.check()
        running: dict[tuple[int, int], str] = {}
        held = 0
        for worker in self.fleet.by_id.values():
            held += len(worker.leases)
            for lease in worker.leases.values():
                if not lease.stopping:
                    key = lease.job.id, lease.index
                    assert key not in running, f"task {key} is leased twice: {running[key]}, {worker.id}"
                    running[key] = worker.id
        assert held == self.leased, f"{self.leased} leases counted, {held} held"
        for requires in self.backlog.by_requires:
            assert requires in self.fleet.roomy, f"nobody knows who meets {requires}"
        total = 0
        for job in self.active.values():
            job.check()
            total += job.counts[RUNNING]
            if self._is_resumed and job.payloads is None and job.has_leasable():
                assert job in self.backlog or job.rests_until > self.now, (
                    f"job {job.id} has queued tasks and is not served"
                )
        assert total == len(running), f"{total} tasks run, {len(running)} are leased"

    # ---- for the other modules of the core ----

    def welcome(self, principal: Principal) -> Welcome:
        """The answer to an accepted greeting."""
        settings = self.settings
        renew_s = 0.0
        if principal.expires:
            # At two thirds; at once if that has passed.
            renew_s = max(0.1, principal.expires - self.now - settings.certificate_s / 3)
        return Welcome(
            PROTOCOL_VERSION,
            settings.cluster,
            settings.name,
            self.epoch,
            settings.lease_s,
            self.data_url,
            self.now,
            principal.role,
            principal.user,
            self.trust.authorities,
            renew_s,
            self.fence,
        )

    def take_tokens(self, count: int) -> int:
        """The first of `count` lease tokens in a row that were never given."""
        token = self.next_lease
        self.next_lease += count
        return token

    def acknowledge(self, worker: Worker, serial: int) -> None:
        """The worker may forget a report once this batch is committed."""
        self._acks.setdefault(worker.peer, []).append(serial)

    def add_job(self, job: Job) -> None:
        """A job is complete."""
        self.jobs[job.id] = self.active[job.id] = job
        self.changed[job.id] = None
        requires = job.definition.requires
        self._requirers[requires] = self._requirers.get(requires, 0) + 1
        if self._requirers[requires] == 1:
            self.fleet.require(requires)
            join.ask_all(self, requires)
        if job.record.request_id:
            self.request_ids[job.record.request_id] = job.id

    def after_outcome(self, job: Job) -> None:
        """Tasks of a job changed: cancel its rest if too many failed, end it if none is left, else keep it served."""
        if cancel.is_failed_enough(job) and job.finished < job.record.count:
            cancel.cancel(self, job, [])
            return
        if job.finished == job.record.count:
            if not job.is_ended:
                self._end(job)
        else:
            self.backlog.add(job)

    def count_finished(self, count: int) -> None:
        """Count ended attempts for the rate that people see."""
        second = int(self.now)
        self._finished[second] = self._finished.get(second, 0) + count
        while len(self._finished) > RATE_WINDOW_S + 1:
            del self._finished[next(iter(self._finished))]

    def tasks_per_s(self, now: float) -> float:
        """Ended attempts a second over the last RATE_WINDOW_S, the second under way included."""
        begun = max(self.begun, now - RATE_WINDOW_S)
        recent = sum(count for second, count in self._finished.items() if second >= int(begun))
        return recent / max(1.0, now - int(begun)) if recent else 0.0

    def note_result_size(self, mean_bytes: float) -> None:
        """Remember the largest mean result, for the space kept free per lease."""
        self.mean_result_bytes_max = max(self.mean_result_bytes_max, mean_bytes)

    def schedule_silence(self, worker: Worker, heard: float) -> None:
        """Look at a worker again when a lease has passed since it was heard."""

        def look(now: float) -> None:
            if self.fleet.by_id.get(worker.id) is not worker:
                return
            if worker.heard + self.settings.lease_s <= now:
                join.lose(self, worker)
            else:
                self.schedule_silence(worker, worker.heard)

        self._schedule(heard + self.settings.lease_s, look)

    def schedule(self, delay_s: float, action: Callable[[float], None]) -> None:
        """Call `action` in a tick after so many seconds."""
        self._schedule(self.now + delay_s, action)

    def schedule_retry(self, delay_s: float, job: Job, indexes: list[int]) -> None:
        """Make these tasks leasable again after their backoff."""

        def retry(now: float) -> None:
            job.due(indexes, now)
            self.backlog.add(job)

        self._schedule(self.now + delay_s, retry)

    # ---- inside ----

    def _take_effects(self) -> list[Effect | Record]:
        effects, self.effects = self.effects, []
        return effects

    def _schedule(self, due: float, action: Callable[[float], None]) -> None:
        self._timer_count += 1
        heappush(self._timers, (due, self._timer_count, action))

    def _on_received(self, event: Received) -> None:
        message: Message = event.message
        principal = self.principals.get(event.peer) or self._greet(event)
        if principal is None:
            return
        try:
            if not may(principal, message):
                self._forbid(event.peer, principal, message)
                return
            worker = self.fleet.by_peer.get(event.peer)
            if worker is not None:
                worker.heard = max(worker.heard, event.at)
                self._on_worker(worker, principal, message, event)
            else:
                self._on_other(event, principal, message)
        except RemoteProtocolError as error:
            self.effects.append(Close(event.peer, "protocol", str(error)))

    def _greet(self, event: Received) -> Principal | None:
        """Take note of who greets; None if it is refused, or was cut off and its connection is not closed yet."""
        principal = event.principal
        if principal is None or not isinstance(event.message, HelloWorker | HelloClient | HelloWeb | HelloGuest):
            return None
        refusal = self.trust.refusal(principal)
        if refusal is not None:
            self.effects.append(Close(event.peer, *refusal))
            return None
        self.principals[event.peer] = principal
        enrol.watch_end(self, principal.expires)
        return principal

    def _forbid(self, peer: int, principal: Principal, message: Message) -> None:
        text = f"the role {principal.role} may not send {type(message).__name__}"
        if principal is GUEST:
            text = "you have no certificate of this cluster; run: dctl join TOKEN"
        request = getattr(message, "request", None)
        if request is None:
            enrol.cut(self, peer, "not_allowed", text)
        else:
            self.effects.append(Send(peer, Refused(request, "not_allowed", text)))

    def _on_gone(self, peer: int) -> None:
        join.on_gone(self, peer)
        submit.drop_drafts(self, peer)
        enrol.end_pending(self, peer)
        self.principals.pop(peer, None)

    def _on_worker(self, worker: Worker, principal: Principal, message: Message, event: Received) -> None:
        if isinstance(message, Reports):
            reports.on_reports(self, worker, message)
        elif isinstance(message, Heartbeat):
            self.effects.append(Send(worker.peer, Heartbeat()))
        elif isinstance(message, Started):
            reports.on_started(self, worker, message)
        elif isinstance(message, Returned):
            reports.on_returned(self, worker, message)
        elif isinstance(message, Inventory):
            join.on_inventory(self, worker, message)
        elif isinstance(message, Has):
            join.on_has(self, worker, message)
        elif isinstance(message, Sealed):
            seals.on_sealed(self, worker, message)
        elif isinstance(message, AskGrant):
            access.on_ask_grant(self, worker.peer, principal, message)
        elif isinstance(message, Renew):
            enrol.on_renew(self, event, principal, message)
        elif not isinstance(message, Goodbye):
            raise RemoteProtocolError(f"a worker does not send {type(message).__name__}")

    def _on_other(self, event: Received, principal: Principal, message: Message) -> None:
        peer = event.peer
        match message:
            case HelloWorker():
                join.on_hello_worker(self, principal, message, event)
            case HelloClient() | HelloWeb():
                refusal = join.refuse_version(message.version)
                self.effects.append(Close(peer, *refusal) if refusal else Send(peer, self.welcome(principal)))
            case HelloGuest():
                enrol.on_hello_guest(self, peer, message)
            case Enrol():
                enrol.on_enrol(self, event, principal, message)
            case Renew():
                enrol.on_renew(self, event, principal, message)
            case Submit():
                if principal.role not in ("admin", "web") or not message.user:
                    message.user = principal.user
                submit.on_submit(self, peer, message, event.fault)
            case Items():
                submit.on_items(self, peer, message, event.fault)
            case Cancel():
                cancel.on_cancel(self, peer, principal, message)
            case Retry():
                cancel.on_retry(self, peer, principal, message)
            case AskGrant():
                access.on_ask_grant(self, peer, principal, message)
            case _ if isinstance(message, administer.Command):
                administer.on_command(self, event, message)
            case _ if not isinstance(message, _NOT_FOR_THE_CORE):
                raise RemoteProtocolError(f"a client does not send {type(message).__name__}")

    def _on_payload(self, event: PayloadRead) -> None:
        job = self.active.get(event.job)
        if job is None or job.payloads is None:
            return
        self.kept_bytes -= job.payloads.kept_bytes
        job.payloads.keep(event.first, event.items)
        self.kept_bytes += job.payloads.kept_bytes
        self.backlog.add(job)

    def _on_degraded(self, event: Degraded) -> None:
        self.degraded = event.reason
        # The workers were turned away meanwhile; their time begins when it is over.
        self._is_resumed = False

    def _end(self, job: Job) -> None:
        if job.payloads is not None:
            self.kept_bytes -= job.payloads.kept_bytes
        job.end(job.final_state(), self.now)
        del self.active[job.id]
        self.backlog.remove(job)
        requires = job.definition.requires
        self._requirers[requires] -= 1
        if not self._requirers[requires]:
            del self._requirers[requires]
            self.fleet.release(requires)
        self.effects.append(JobEndRecord(job.id, job.state_at_end, list(job.counts), self.now))

    def _restore(self, restored: Restored) -> None:
        for digest, body in restored.definitions.items():
            self.recorded_definitions[digest] = decode_definition(body)
        for entry in restored.jobs:
            job = Job(entry.record, self.recorded_definitions[entry.record.definition], entry.chunks)
            if entry.end is not None:
                job.counts = list(entry.end.counts)
                job.started, job.serial = entry.started, entry.last_serial
                job.end(entry.end.state, entry.end.ended)
                self.jobs[job.id] = job
            else:
                job.restore(entry)
                self.add_job(job)
            if entry.record.request_id:
                self.request_ids[entry.record.request_id] = job.id
        self.changed.clear()
        for record in restored.workers:
            self.returning[record.worker] = record.name

    def _resume(self) -> None:
        """Begin (again) to act on what the journal holds; the first records may be written now."""
        self._is_resumed = True
        for job in list(self.active.values()):
            # A crash may have come between the last outcome and the job's end.
            self.after_outcome(job)
        if not self.returning:
            join.settle_doubt(self, nobody_was_here=True)
            return

        def give_up(now: float) -> None:
            for worker, name in self.returning.items():
                # One that has greeted and not said what it holds is here: its own silence decides about it.
                if worker not in self.fleet.by_id:
                    self.effects.append(WorkerRecord(worker, name, False, now))
            if self.returning:
                join.settle_doubt(self, nobody_was_here=False)

        self.doubt_until = self.now + self.settings.lease_s
        self._schedule(self.doubt_until, give_up)
