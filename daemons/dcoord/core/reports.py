"""What workers say of their leases: started, ended, given back; and what it makes of the tasks.

First valid report wins: a report counts if its worker holds the lease it names, or if it proves that it had
that lease before a restart (`seals.py`) and the task is still unfinished and not leased anew. Everything else is recognised as
late and refused; either way the worker may forget it.
"""

from itertools import compress
from typing import TYPE_CHECKING

from dcoord.core.fleet import Worker
from dcoord.core.job import Job
from dcoord.core.records import OutcomeRecord
from dcoord.core.task import Lease, final_reason, retry_delay_s
from districomp.errors import RemoteProtocolError
from districomp.messages import BATCH_TASKS, Reports, Returned, Started
from districomp.model import DONE, FAILED, QUEUED, REASONS, RUNNING
from districomp.outcome import Outcome

if TYPE_CHECKING:
    from dcoord.core.core import Core

COLUMNS = (
    "attempts",
    "reasons",
    "exit_codes",
    "signals",
    "started",
    "ended",
    "cpu_s",
    "memory_bytes",
    "stderr",
    "results",
)
"""The columns that Reports and Outcome share, `indexes` aside."""
_REASONS = frozenset(REASONS)


def on_started(core: "Core", worker: Worker, message: Started) -> None:
    """Attempts that run by now; those that have ended meanwhile are passed over."""
    if len(message.times) != len(message.leases):
        raise RemoteProtocolError("Started: its columns differ in length")
    for token, at in zip(message.leases, message.times, strict=True):
        lease = worker.leases.get(token)
        if lease is not None:
            worker.mark_started(lease, at)


def on_returned(core: "Core", worker: Worker, message: Returned) -> None:
    """Unstarted leases given back: queued again, no attempt counted."""
    for token in message.leases:
        lease = worker.drop(token)
        if lease is None:
            continue
        core.leased -= 1
        if not lease.stopping:
            lease.job.give_back(lease.index)
            core.backlog.add(lease.job)
    if worker.recalls:
        worker.gave_back(len(message.leases))
        core.fleet.make_roomy(worker)
    else:
        # Nobody asked: it is stopping, and would hand back again at once whatever it is given.
        core.fleet.leave_alone(worker)


def on_reports(core: "Core", worker: Worker, message: Reports) -> None:
    """Ended attempts of one job. RemoteProtocolError for columns that do not fit, or a lease that names another task."""
    _check_columns(message)
    core.fleet.make_roomy(worker)
    job = core.jobs.get(message.job)
    if job is None or job.is_ended:
        _drop_all(core, worker, message)
    else:
        keep = _claim(core, worker, job, message)
        if keep is not None:
            _record(core, worker, job, message, keep)
    core.acknowledge(worker, message.serial)


def _check_columns(message: Reports) -> None:
    count = len(message.indexes)
    if len(message.leases) != count:
        raise RemoteProtocolError("Reports: its columns differ in length")
    for name in COLUMNS:
        column = getattr(message, name)
        if column and len(column) != count:
            raise RemoteProtocolError(f"Reports: {name} has {len(column)} entries, not {count}")
    if message.reasons and not _REASONS.issuperset(message.reasons):
        raise RemoteProtocolError("Reports: a reason that is not in the list")


def _drop_all(core: "Core", worker: Worker, message: Reports) -> None:
    for token in message.leases:
        lease = worker.leases.get(token)
        if lease is not None and lease.job.is_ended:
            worker.drop(token)
            core.leased -= 1


def _claim(core: "Core", worker: Worker, job: Job, message: Reports) -> list[bool] | None:
    """Which reports count; their leases are taken from the worker. None: none does; []: all do.

    RemoteProtocolError, and nothing is changed, if a report is not of the task that was leased.
    """
    if min(message.indexes, default=0) < 0 or max(message.indexes, default=0) >= job.record.count:
        raise RemoteProtocolError(f"Reports: job {job.id} has no task {min(message.indexes)} or {max(message.indexes)}")
    leases = worker.leases
    taken: dict[int, Lease] = {}
    odd: list[int] = []
    for place, (token, index) in enumerate(zip(message.leases, message.indexes, strict=True)):
        lease = leases.pop(token, None)
        if lease is None:
            odd.append(place)
            continue
        taken[token] = lease
        # By its number: a lease that is stopping may be of before the job was ended and opened again.
        if lease.job.id != job.id or lease.index != index:
            leases.update(taken)
            text = f"a lease of task {lease.job.id}.{lease.index} reported for {job.id}.{index}"
            raise RemoteProtocolError(f"Reports: {text}")
        if lease.stopping:
            odd.append(place)
    core.leased -= len(taken)
    if worker.started:
        worker.started -= sum(lease.started is not None for lease in taken.values())
    late = [
        place for place in odd if message.leases[place] in taken or not _is_still_valid(worker, job, message, place)
    ]
    if not late:
        return []
    core.refused_reports += len(late)
    if len(late) == len(message.leases):
        return None
    keep = [True] * len(message.leases)
    for place in late:
        keep[place] = False
    return keep


def _is_still_valid(worker: Worker, job: Job, message: Reports, place: int) -> bool:
    """A report whose lease its worker does not hold: did it have that before a restart, and is it still wanted?"""
    index = message.indexes[place]
    if worker.sealed.get(message.leases[place]) != (job.id, index) or job.states[index] != QUEUED:
        return False
    reason = message.reasons[place] if message.reasons else "done"
    if reason != "done":
        attempt = message.attempts[place] if message.attempts else 1
        if reason == "cancelled" or attempt < job.attempt_of(index):
            # Stopped because it was not wanted; or written down already, and only its acknowledgement was lost.
            return False
    job.move(index, RUNNING)
    job.doubt.discard(index)
    job.waiting.pop(index, None)
    return True


def _record(core: "Core", worker: Worker, job: Job, message: Reports, keep: list[bool]) -> None:
    outcome = Outcome(job.id, job.serial + 1, worker.id, message.indexes)
    for name in COLUMNS:
        setattr(outcome, name, getattr(message, name))
    if keep:
        outcome.indexes = list(compress(outcome.indexes, keep))
        for name in COLUMNS:
            setattr(outcome, name, list(compress(getattr(outcome, name), keep)))
    if outcome.reasons:
        _judge(core, job, outcome)
    else:
        job.finish(outcome.indexes, DONE)
        if job.tries:
            for index in outcome.indexes:
                job.tries.pop(index, None)
    mean_s = job.learn(outcome)
    if mean_s is not None:
        worker.learn(job.id, mean_s)
    core.note_result_size(job.mean_result_bytes)
    core.count_finished(len(outcome.indexes))
    write_outcome(core, job, outcome)
    core.after_outcome(job)


def _judge(core: "Core", job: Job, outcome: Outcome) -> None:
    """Decide for each ended attempt what its task becomes; fills in `states`."""
    count = len(outcome.indexes)
    reasons = list(outcome.reasons)
    codes = outcome.exit_codes or [None] * count
    states: list[int] = []
    postponed: dict[float, list[int]] = {}
    for place, index in enumerate(outcome.indexes):
        reason = reasons[place]
        if reason == "done":
            job.move(index, DONE)
            states.append(DONE)
            continue
        tries = job.tries.get(index)
        delay_s = retry_delay_s(job.definition, tries, reason, codes[place])
        if delay_s is None:
            reasons[place] = final_reason(job.definition, reason)
            job.move(index, FAILED)
            states.append(FAILED)
            continue
        job.count_try(index, reason)
        states.append(QUEUED)
        if delay_s > 0:
            job.postpone(index, core.now + delay_s)
            postponed.setdefault(delay_s, []).append(index)
        else:
            job.give_back(index)
    for index, state in zip(outcome.indexes, states, strict=True):
        if state != QUEUED:
            job.tries.pop(index, None)
    outcome.reasons, outcome.states = reasons, states
    for delay_s, indexes in postponed.items():
        core.schedule_retry(delay_s, job, indexes)


def end_attempts(core: "Core", worker: Worker, leases: list[Lease], reason: str) -> None:
    """Attempts ended without their worker's word (it is lost, or was restarted): record, and retry or fail their tasks."""
    by_job: dict[int, list[Lease]] = {}
    for lease in leases:
        by_job.setdefault(lease.job.id, []).append(lease)
    for held in by_job.values():
        job = held[0].job
        outcome = Outcome(
            job.id,
            job.serial + 1,
            worker.id,
            [lease.index for lease in held],
            attempts=[lease.attempt for lease in held],
            reasons=[reason] * len(held),
            started=[lease.started for lease in held],
            ended=[core.now] * len(held),
        )
        _judge(core, job, outcome)
        write_outcome(core, job, outcome)
        core.after_outcome(job)


def end_queued(core: "Core", job: Job, indexes: list[int], state: int, *, reason: str, attempts: list[int]) -> None:
    """Queued tasks take a final state, and no worker reports it. `attempts`: the last one of each, 0 if it had none.

    In rows of a batch each: there may be millions, and a row has to fit into a frame on its way to clients.
    """
    for first in range(0, len(indexes), BATCH_TASKS):
        batch = indexes[first : first + BATCH_TASKS]
        for index in batch:
            job.move(index, state)
            job.waiting.pop(index, None)
            job.doubt.discard(index)
        count = len(batch)
        outcome = Outcome(
            job.id,
            job.serial + 1,
            "",
            batch,
            states=[state] * count,
            attempts=attempts[first : first + BATCH_TASKS],
            reasons=[reason] * count,
            ended=[core.now] * count,
        )
        write_outcome(core, job, outcome)


def write_outcome(core: "Core", job: Job, outcome: Outcome) -> None:
    """Emit a job's next row."""
    job.serial = outcome.serial
    core.changed[job.id] = None
    core.effects.append(OutcomeRecord(outcome))
