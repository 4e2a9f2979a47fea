"""Workers come, say what they hold, fall silent and are lost.

A closed connection only starts the clock of the lease; what a worker holds is taken from it when it
has been silent for a whole lease, or when it comes back without it.
"""

from typing import TYPE_CHECKING

from dcoord.core.effects import Close, Send
from dcoord.core.events import Received
from dcoord.core.fleet import Worker
from dcoord.core.job import Job
from dcoord.core.records import WorkerRecord
from dcoord.core.reports import end_attempts, end_queued
from dcoord.core.rights import Principal
from dcoord.core.task import Lease
from districomp.errors import RemoteProtocolError
from districomp.messages import PROTOCOL_VERSION, Ask, Has, HelloWorker, Inventory, Stop
from districomp.model import FAILED, QUEUED, RUNNING
from districomp.taskdef import Requires

if TYPE_CHECKING:
    from dcoord.core.core import Core

NAME_CHARS_MAX = 255
SLOTS_MAX = 4096
ASK_AGAIN_S = 30.0
"""How often machines are asked again for a program that they lacked, while a job waits for it."""


def on_hello_worker(core: "Core", principal: Principal, hello: HelloWorker, event: Received) -> None:
    """A worker wants to join: welcome it, or say why not."""
    peer, address, at = event.peer, event.address, event.at
    refusal = refuse_version(hello.version) or _refuse(core, principal, hello)
    if refusal is not None:
        core.effects.append(Close(peer, *refusal))
        return
    worker = core.fleet.get(hello.worker)
    if worker.peer:
        core.principals.pop(worker.peer, None)
        core.effects.append(
            Close(worker.peer, "replaced", f"worker {hello.name} has a newer connection, from {address}")
        )
    # What the last connection had begun to say of its leases may not hold any more.
    core.inventories.pop(worker.id, None)
    if worker.leases and worker.process != hello.process:
        _lose_leases(core, worker)
    is_new = worker.heard == 0.0 or worker.is_lost
    core.fleet.attach(worker, hello, peer, address, at)
    identity = core.trust.identities.get(worker.id)
    if identity is not None:
        worker.add_labels(identity.labels)
    if is_new:
        core.effects.append(WorkerRecord(worker.id, worker.name, True, at))
        core.schedule_silence(worker, at)
    core.effects.append(Send(peer, core.welcome(principal)))


def refuse_version(version: int) -> tuple[str, str] | None:
    """Why a peer's protocol version is refused, as Goodbye's code and text; None if it is ours."""
    if version == PROTOCOL_VERSION:
        return None
    return "version", f"this coordinator speaks protocol {PROTOCOL_VERSION}, you speak {version}: update the older one"


def _refuse(core: "Core", principal: Principal, hello: HelloWorker) -> tuple[str, str] | None:
    if principal.identity != hello.worker:
        return "not_allowed", f"your certificate is for {principal.identity}, not for the worker {hello.worker:.64}"
    if hello.cluster not in ("", core.settings.cluster, core.settings.name, *core.trust.clusters):
        return "cluster", f"this is cluster {core.settings.name} ({core.settings.cluster}), not {hello.cluster}"
    if core.degraded:
        return "degraded", core.degraded
    if not 0 < len(hello.worker) <= 64 or not hello.worker.isascii() or not hello.worker.isprintable():
        raise RemoteProtocolError("HelloWorker: a worker id is 1 to 64 printable ASCII characters")
    if not 0 < len(hello.name) <= NAME_CHARS_MAX or not hello.name.isprintable():
        raise RemoteProtocolError(f"HelloWorker: a name is 1 to {NAME_CHARS_MAX} printable characters")
    if not 1 <= hello.slots <= SLOTS_MAX:
        raise RemoteProtocolError(f"HelloWorker: {hello.slots} slots; 1 to {SLOTS_MAX} are possible")
    return None


def on_inventory(core: "Core", worker: Worker, message: Inventory) -> None:
    """What the worker still holds: adopt what is valid, stop what is not, and at the end requeue what it does not name."""
    columns = (message.indexes, message.attempts, message.started)
    if any(len(column) != len(message.leases) for column in columns):
        raise RemoteProtocolError("Inventory: its columns differ in length")
    named = core.inventories.setdefault(worker.id, {})
    job = core.jobs.get(message.job)
    stop: list[int] = []
    for token, index, attempt, started in zip(message.leases, *columns, strict=True):
        lease = worker.leases.get(token)
        if lease is None:
            if job is None or worker.sealed.get(token) != (job.id, index) or not _is_wanted(job, index):
                stop.append(token)
                continue
            lease = _adopt(core, job, index, attempt)
            worker.leases[token] = lease
            core.leased += 1
        named[token] = None
        if lease.stopping:
            stop.append(token)
        if started is not None:
            worker.mark_started(lease, started)
    if stop:
        core.effects.append(Send(worker.peer, Stop(stop)))
    if message.last:
        _reconcile(core, worker, core.inventories.pop(worker.id))


def _is_wanted(job: Job, index: int) -> bool:
    return not job.is_ended and job.states[index] == QUEUED


def _adopt(core: "Core", job: Job, index: int, attempt: int) -> Lease:
    """A lease of before a restart is its worker's again."""
    job.move(index, RUNNING)
    job.doubt.discard(index)
    job.waiting.pop(index, None)
    core.changed[job.id] = None
    return Lease(job, index, attempt)


def _reconcile(core: "Core", worker: Worker, named: dict[int, None]) -> None:
    """The inventory is complete: what it does not name never reached the worker."""
    missing = [token for token in worker.leases if token not in named]
    lost: list[Lease] = []
    for token in missing:
        lease = worker.drop(token)
        assert lease is not None
        core.leased -= 1
        if lease.stopping:
            continue
        if lease.started is not None or lease.job.definition.rerun == "never":
            lost.append(lease)
        else:
            lease.job.give_back(lease.index)
            core.backlog.add(lease.job)
    end_attempts(core, worker, lost, "worker_lost")
    worker.is_ready = True
    worker.sealed.clear()
    for requires in core.fleet.roomy:
        ask(core, worker, requires)
    core.fleet.make_roomy(worker)
    _is_back(core, worker)


def on_has(core: "Core", worker: Worker, message: Has) -> None:
    """A worker says which programs its machine has, of those it was asked about."""
    for program in message.programs:
        if program in worker.programs or program in worker.asked:
            worker.programs[program] = program in message.found
            worker.asked.pop(program, None)
    core.fleet.make_roomy(worker)


def ask(core: "Core", worker: Worker, requires: Requires) -> None:
    """Ask a worker about the programs of a requirement that it has not said anything of."""
    unasked = worker.unasked(requires)
    if unasked and worker.is_ready:
        worker.asked.update(dict.fromkeys(unasked))
        core.effects.append(Send(worker.peer, Ask(unasked)))


def ask_all(core: "Core", requires: Requires) -> None:
    """Ask every worker about a new requirement's programs, and from time to time again: programs get installed."""
    if not requires.programs:
        return
    for worker in core.fleet.by_peer.values():
        ask(core, worker, requires)
    if requires in core.asking:
        return
    core.asking[requires] = None

    def ask_again(_now: float) -> None:
        del core.asking[requires]
        if requires in core.fleet.roomy:
            for worker in core.fleet.by_peer.values():
                for program in requires.programs:
                    if worker.programs.get(program) is False:
                        del worker.programs[program]
            ask_all(core, requires)

    core.schedule(ASK_AGAIN_S, ask_again)


def on_gone(core: "Core", peer: int) -> None:
    """A connection closed. A worker keeps what it holds until its lease has passed."""
    worker = core.fleet.by_peer.get(peer)
    if worker is not None:
        core.inventories.pop(worker.id, None)
        core.fleet.detach(worker)


def lose(core: "Core", worker: Worker) -> None:
    """A worker was silent for a whole lease."""
    if worker.peer:
        silent = f"silent for {core.settings.lease_s:g} s; join again"
        core.effects.append(Close(worker.peer, "silent", silent))
    core.inventories.pop(worker.id, None)
    _lose_leases(core, worker)
    core.fleet.forget(worker)
    core.effects.append(WorkerRecord(worker.id, worker.name, False, core.now))
    _is_back(core, worker)


def _lose_leases(core: "Core", worker: Worker) -> None:
    """Take everything from a worker. An attempt is counted where one may have begun.

    Leases are started in the order given, so beside those it named at most the first ones up to its
    slots can have begun; a definition that may run at most once counts every one.
    """
    unnamed = max(0, worker.slots - worker.started)
    lost: list[Lease] = []
    unstarted: list[Lease] = []
    for lease in worker.leases.values():
        if lease.stopping:
            continue
        if lease.started is None and unnamed > 0:
            unnamed -= 1
            lost.append(lease)
        elif lease.started is not None or lease.job.definition.rerun == "never":
            lost.append(lease)
        else:
            unstarted.append(lease)
    core.leased -= len(worker.leases)
    worker.leases.clear()
    worker.started = 0
    # Backwards, because each goes to the front of the line.
    for lease in reversed(unstarted):
        lease.job.give_back(lease.index)
        core.backlog.add(lease.job)
    end_attempts(core, worker, lost, "worker_lost")


def _is_back(core: "Core", worker: Worker) -> None:
    """A worker will say no more of what it has from before the restart."""
    if core.returning.pop(worker.id, None) is not None and not core.returning:
        settle_doubt(core, nobody_was_here=False)


def settle_doubt(core: "Core", *, nobody_was_here: bool) -> None:
    """Nobody will report what was in doubt since the restart: lease it anew, or fail what may run only once.

    That everybody is back is not enough for the latter: a worker may have begun it, and been restarted meanwhile.
    """
    core.returning.clear()
    for job in list(core.active.values()):
        is_unknown = job.definition.rerun == "never" and not nobody_was_here
        unknown = list(job.doubt) if is_unknown else []
        job.settle_doubt()
        if unknown:
            attempts = [job.attempt_of(index) for index in unknown]
            end_queued(core, job, unknown, FAILED, reason="outcome_unknown", attempts=attempts)
            core.after_outcome(job)
        else:
            core.backlog.add(job)
