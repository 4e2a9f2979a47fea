"""Placement: queued tasks to workers with room, greedily, once a batch.

The cost follows what is handed out: every step either gives a lease, or takes a worker or a job out of
the running. Never looks at all queued tasks or at all workers.
"""

from itertools import islice
from typing import TYPE_CHECKING, Final

from dcoord.core.access import item_grant
from dcoord.core.effects import ReadPayload, Send
from dcoord.core.fleet import KNOWN_MAX, RECALL_PAUSE_S, Worker
from dcoord.core.job import Job
from dcoord.core.payload import KEPT_BYTES_MAX, items_bytes
from dcoord.core.records import FrontierRecord
from dcoord.core.seals import seal
from dcoord.core.task import Lease
from districomp.messages import BATCH_BYTES, BATCH_TASKS, Assign, Define, JobSpec, Recall
from districomp.model import Blob, Item, item_content
from districomp.taskdef import Requires, encode_definition

if TYPE_CHECKING:
    from dcoord.core.core import Core

PREFETCH_S: Final = 0.1
"""A worker holds about so much work beside what it runs."""
WINDOW_MAX: Final = 8192
LEASED_MANY: Final = 65_536
"""While more than this is leased, each worker's prefetch is at most what it runs at once: leases take memory."""
PASS_MAX: Final = 8192
"""Leases given in one pass; the next one follows when those are on their way, and what has come meanwhile is taken in."""
FRONTIER_CHUNK: Final = 1024
SERVED_MAX: Final = 256
"""So many workers are looked at together to share a job's last tasks out."""
HAND_OUT_S: Final = 0.0001
"""What it takes to give one more worker a part of a job, until its report is recorded."""
WAVE_WORKERS: Final = 4
"""While nobody knows how long a job's tasks take, each worker is given what it runs at once: so many workers first, then
again and again as many as have something (a power of two). Of tiny tasks the first reports are back before the others have
been given one each, which would cost as much as thousands; of long ones a thousand workers have theirs after nine waves."""
WAVE_S: Final = 0.005
"""Between two such waves, if no report comes."""
LOW_WATER_BYTES: Final = 64 * 1024 * 1024
RECALL_S: Final = 0.02
"""Tasks are taken back for an idle worker only if they would wait longer than that where they are."""
LOOK_S: Final = 0.01
"""Between two looks for what could be taken back, because each looks at many workers."""


def place(core: "Core", now: float) -> None:
    """Hand out what can be handed out, then take back unstarted tasks if somebody is idle."""
    if core.degraded or not _has_space(core):
        return
    enough = core.next_lease + PASS_MAX
    while (requires := _next_requires(core)) is not None:
        if core.next_lease >= enough:
            core.schedule(0.0, _go_on)
            return
        _serve(core, requires, enough, now)
    if core.fleet.surplus:
        _recall(core)


def _next_requires(core: "Core") -> Requires | None:
    """The first requirement in line that has a job and a worker with room."""
    roomy = core.fleet.roomy
    return next((requires for requires in core.backlog.by_requires if roomy[requires]), None)


def _go_on(_now: float) -> None:
    """Nothing: that it is due is what makes the next pass."""


def _serve(core: "Core", requires: Requires, enough: int, now: float) -> None:
    """Give each worker that meets a requirement, and has room now, one job's tasks; until the lease `enough` is reached."""
    fleet, backlog = core.fleet, core.backlog
    roomy = fleet.roomy[requires]
    there = len(roomy)
    for place_, worker in enumerate(list(islice(roomy.values(), SERVED_MAX))):
        if requires not in backlog.by_requires or core.next_lease >= enough:
            return
        job = backlog.first(requires)
        # An equal share for each, so that the last tasks do not queue behind one machine.
        share = -(-job.leasable // max(1, _spread(job, there) - place_))
        if _give(core, worker, job, share, now):
            fleet.make_last(worker, requires)
        else:
            fleet.make_full(worker)
        if len(worker.leases) > worker.slots:
            fleet.surplus[worker.id] = worker


def _spread(job: Job, there: int) -> int:
    """Among how many of the workers that are there a job's tasks are best divided.

    Work that takes W seconds is done by n workers in W / n, and handed out one after the other in n times HAND_OUT_S: a
    thousand tasks of 10 us are done soonest by ten workers, however many there are.
    """
    if job.mean_s is None:
        return there
    return max(1, min(there, int((job.leasable * job.mean_s / HAND_OUT_S) ** 0.5)))


def _has_space(core: "Core") -> bool:
    reserved = core.leased * core.mean_result_bytes_max
    core.is_short_of_space = core.free_bytes - reserved < LOW_WATER_BYTES
    return not core.is_short_of_space


def _give(core: "Core", worker: Worker, job: Job, share: int, now: float) -> bool:
    """Give a worker up to `share` tasks of a job, then it is another job's turn; whether the worker has room left."""
    room = _window(core, worker, job) - len(worker.leases)
    if room <= 0:
        return False
    indexes = job.take(min(room, max(1, share), BATCH_TASKS))
    if not indexes:
        core.backlog.remove(job)
        read_ahead(core, job)
        return True
    _assign(core, worker, job, indexes, now)
    if not job.leasable or _rests(core, job):
        core.backlog.remove(job)
    else:
        core.backlog.rotate(job)
    return len(indexes) < room


def _rests(core: "Core", job: Job) -> bool:
    """Count a worker that was given something, and let the job rest after each wave; whether it does now."""
    if job.mean_s is not None:
        return False
    job.given += 1
    if job.given < WAVE_WORKERS or job.given.bit_count() != 1:
        return False
    job.rests_until = core.now + WAVE_S
    core.schedule(WAVE_S, lambda _now: core.backlog.add(job))
    return True


def read_ahead(core: "Core", job: Job) -> None:
    """Have the items read that the job's next leases need; PayloadRead brings it back into the backlog."""
    payloads = job.payloads
    if payloads is None:
        return
    first = job.wanted_payload()
    if first is not None:
        core.effects.append(ReadPayload(job.id, first))
    elif core.kept_bytes < KEPT_BYTES_MAX and job.position < payloads.count:
        following = payloads.want(payloads.chunk_of(job.position)[1])
        if following is not None:
            core.effects.append(ReadPayload(job.id, following))


def _window(core: "Core", worker: Worker, job: Job) -> int:
    """How many leases the worker should hold: its slots, and what it does in the prefetch time beside."""
    mean_s = worker.means.get(job.id, job.mean_s)
    if mean_s is None or job.definition.rerun == "never":
        # What a lost worker may have begun can not be run again, so it is given only what it runs at once.
        return worker.slots
    prefetch = int(worker.slots * PREFETCH_S / max(mean_s, 1e-6))
    if core.leased > LEASED_MANY:
        prefetch = min(prefetch, worker.slots)
    return min(WINDOW_MAX, worker.slots + prefetch)


def _assign(core: "Core", worker: Worker, job: Job, indexes: list[int], now: float) -> None:
    _introduce(core, worker, job)
    if job.started is None:
        job.started = now
    if job.cursor > job.frontier:
        exact = job.definition.rerun == "never"
        job.frontier = min(job.record.count, job.cursor + (0 if exact else FRONTIER_CHUNK))
        core.effects.append(FrontierRecord(job.id, job.frontier, job.started))
    attempts = [job.attempt_of(index) for index in indexes] if job.tries else []
    if attempts and max(attempts) == 1:
        attempts = []
    token = core.take_tokens(len(indexes))
    leases = worker.leases
    for place_, index in enumerate(indexes):
        leases[token + place_] = Lease(job, index, attempts[place_] if attempts else 1)
    core.leased += len(indexes)
    core.changed[job.id] = None
    whole = Assign(job.id, token, indexes, attempts)
    if job.payloads is None:
        _send(core, worker, whole)
    else:
        _send_items(core, worker, job, whole)


def _send(core: "Core", worker: Worker, assign: Assign) -> None:
    assign.seal = seal(core.seal_key, worker.id, assign.job, assign.lease, assign.indexes)
    core.effects.append(Send(worker.peer, assign))


def _grants(core: "Core", worker: Worker, part: Assign) -> list[str]:
    """The rights to fetch the large ones among these items; empty if there are none."""
    is_large = [isinstance(item_content(item), Blob) for item in part.items]
    if not any(is_large):
        return []
    return [
        item_grant(core, worker, part.lease + i, part.job, index) if is_large[i] else ""
        for i, index in enumerate(part.indexes)
    ]


def _send_items(core: "Core", worker: Worker, job: Job, whole: Assign) -> None:
    """Send with items, cut by bytes; then drop the chunk if it is handed out, and read the next one ahead."""
    payloads = job.payloads
    assert payloads is not None
    indexes = whole.indexes
    loaded = payloads.loaded(indexes[0])
    assert loaded is not None, "take() gives only indices whose items are here"
    first, chunk = loaded
    items = [chunk[index - first] for index in indexes]
    start = 0
    while start < len(items):
        end = _cut(items, start)
        attempts = whole.attempts[start:end]
        part = Assign(job.id, whole.lease + start, indexes[start:end], attempts, items[start:end])
        part.grants = _grants(core, worker, part)
        _send(core, worker, part)
        start = end
    core.kept_bytes -= payloads.kept_bytes
    payloads.drop_all_but(job.next_index())
    core.kept_bytes += payloads.kept_bytes
    read_ahead(core, job)


def _cut(items: list[Item], start: int) -> int:
    """Where the frame that begins at `start` ends, so that it stays near BATCH_BYTES."""
    if items_bytes(items[start:]) <= BATCH_BYTES:
        return len(items)
    size, end = 0, start
    while end < len(items) and (end == start or size < BATCH_BYTES):
        size += items_bytes(items[end : end + 1])
        end += 1
    return end


def _introduce(core: "Core", worker: Worker, job: Job) -> None:
    """Send the definition and the job's own data once a connection, before the first lease."""
    if job.id in worker.known_jobs:
        return
    definition = job.definition
    if definition.digest not in worker.known_definitions:
        worker.known_definitions[definition.digest] = None
        if len(worker.known_definitions) > KNOWN_MAX:
            del worker.known_definitions[next(iter(worker.known_definitions))]
        core.effects.append(Send(worker.peer, Define(definition.digest, encode_definition(definition))))
    worker.known_jobs[job.id] = None
    if len(worker.known_jobs) > KNOWN_MAX:
        del worker.known_jobs[next(iter(worker.known_jobs))]
    record = job.record
    core.effects.append(
        Send(worker.peer, JobSpec(job.id, definition.digest, record.params, record.numbers, record.matrix))
    )


def _idle(core: "Core") -> dict[Requires, None]:
    """The requirements that a worker with a free slot meets, and of which nothing is queued: it was served before."""
    return {
        requires: None
        for requires, workers in core.fleet.roomy.items()
        if any(len(worker.leases) < worker.slots for worker in workers.values())
    }


def _recall(core: "Core") -> None:
    """Ask the workers with more than they can run to give half of the rest back; the idle get it when it comes."""
    fleet = core.fleet
    if core.recall_look > core.now:
        _look_again(core, core.recall_look - core.now)
        return
    idle = _idle(core)
    if not idle:
        return
    for worker in list(fleet.surplus.values()):
        spare = len(worker.leases) - worker.slots
        if spare <= 0:
            del fleet.surplus[worker.id]
        elif worker.recall_after <= core.now and worker.peer and _wait_s(core, worker, spare) >= RECALL_S:
            tokens = _unstarted(worker, -(-spare // 2), idle)
            if tokens:
                worker.recall_after = core.now + worker.recall_pause_s
                worker.recalls += 1
                core.effects.append(Send(worker.peer, Recall(tokens)))
    core.recall_look = core.now + LOOK_S
    if fleet.surplus:
        # Nothing else may happen meanwhile, and what waits behind a long task waits the longer.
        _look_again(core, RECALL_PAUSE_S)


def _look_again(core: "Core", delay_s: float) -> None:
    """Look without being asked, once at a time."""

    def look(_now: float) -> None:
        core.is_recall_due = False
        core.recall_look = 0.0

    if not core.is_recall_due:
        core.is_recall_due = True
        core.schedule(delay_s, look)


def _wait_s(core: "Core", worker: Worker, spare: int) -> float:
    """How long the last of what a worker can not run at once will wait there, about."""
    job = worker.leases[next(reversed(worker.leases))].job
    mean_s = worker.means.get(job.id, job.mean_s) or 0.0
    # A task whose running time already exceeds the mean holds the others up at least as long again.
    oldest = next(iter(worker.leases.values()))
    if oldest.started is not None:
        mean_s = max(mean_s, core.now - oldest.started)
    return mean_s * spare / worker.slots


def _unstarted(worker: Worker, count: int, idle: dict[Requires, None]) -> list[int]:
    """Up to `count` of its leases that may not have begun and that somebody idle could run, the newest first."""
    tokens: list[int] = []
    for token in reversed(worker.leases):
        if len(tokens) >= count:
            break
        lease = worker.leases[token]
        if lease.started is None and not lease.stopping and lease.job.definition.requires in idle:
            tokens.append(token)
    return tokens
