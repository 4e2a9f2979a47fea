"""A person's word on a job that exists: cancel it or some of its tasks, or queue again what did not end well.

Cancelling is recorded at once; what runs is stopped, and its slot stays busy until its worker says that it has
ended. Knows leases and jobs; what workers report meanwhile is refused by `reports.py`.
"""

from typing import TYPE_CHECKING

from dcoord.core.effects import ReadJob, Send
from dcoord.core.events import JobRead
from dcoord.core.fleet import Worker
from dcoord.core.job import Job
from dcoord.core.records import ResumeRecord
from dcoord.core.reports import end_queued, write_outcome
from dcoord.core.rights import Principal, owns
from dcoord.core.task import Lease
from districomp.messages import Cancel, Refused, Retry, Stop
from districomp.model import CANCELLED, FAILED, QUEUED, RUNNING, SKIPPED
from districomp.outcome import Outcome

if TYPE_CHECKING:
    from dcoord.core.core import Core


def on_cancel(core: "Core", peer: int, principal: Principal, message: Cancel) -> None:
    """Cancel a job or some of its tasks: recorded at once, later reports are refused. The driver answers with the document."""
    job = _job_of(core, peer, principal, message)
    if job is None:
        return
    if any(not 0 <= index < job.record.count for index in message.indexes):
        text = f"job {job.id} has the tasks {job.id}.0 to {job.id}.{job.record.count - 1}"
        core.effects.append(Send(peer, Refused(message.request, "unknown_task", text)))
    else:
        if not job.is_ended:
            cancel(core, job, message.indexes)
        core.answers.append((peer, message.request, job.id))


def _job_of(core: "Core", peer: int, principal: Principal, message: Cancel | Retry) -> Job | None:
    """The job that a request names; None after it was refused."""
    job = core.jobs.get(message.job)
    if core.degraded:
        core.effects.append(Send(peer, Refused(message.request, "degraded", core.degraded)))
        return None
    if job is None:
        text = f"there is no job {message.job}; see: dctl job list"
        core.effects.append(Send(peer, Refused(message.request, "unknown_job", text)))
    elif not owns(principal, job.record.user):
        text = f"job {message.job} is not yours, and your role is {principal.role}"
        core.effects.append(Send(peer, Refused(message.request, "not_allowed", text)))
        return None
    return job


def cancel(core: "Core", job: Job, indexes: list[int]) -> None:
    """Cancel these tasks, or without indexes the whole rest of the job."""
    chosen = dict.fromkeys(indexes)
    _stop_running(core, job, chosen)
    if chosen:
        queued = [index for index in chosen if job.states[index] == QUEUED]
        end_queued(core, job, queued, CANCELLED, reason="cancelled", attempts=[0] * len(queued))
    elif job.counts[QUEUED]:
        job.sweep(CANCELLED)
        write_outcome(core, job, Outcome(job.id, job.serial + 1, "", [], sweep=CANCELLED))
    core.after_outcome(job)


def _stop_running(core: "Core", job: Job, chosen: dict[int, None]) -> None:
    """The tasks are cancelled now; their slots stay busy until their workers say that they have ended."""
    left = sum(job.states[index] == RUNNING for index in chosen) if chosen else job.counts[RUNNING]
    if not left:
        return
    for worker in core.fleet.by_id.values():
        tokens = [
            token
            for token, lease in worker.leases.items()
            if lease.job is job and not lease.stopping and (not chosen or lease.index in chosen)
        ]
        if tokens:
            _stop_on(core, job, worker, tokens)
            left -= len(tokens)
        if left == 0:
            return


def _stop_on(core: "Core", job: Job, worker: Worker, tokens: list[int]) -> None:
    leases: list[Lease] = [worker.leases[token] for token in tokens]
    for lease in leases:
        lease.stopping = True
    indexes = [lease.index for lease in leases]
    job.finish(indexes, CANCELLED)
    count = len(indexes)
    outcome = Outcome(job.id, job.serial + 1, worker.id, indexes, [CANCELLED] * count)
    outcome.attempts = [lease.attempt for lease in leases]
    outcome.reasons = ["cancelled"] * count
    outcome.started = [lease.started for lease in leases]
    outcome.ended = [core.now] * count
    write_outcome(core, job, outcome)
    if worker.peer:
        core.effects.append(Send(worker.peer, Stop(tokens)))


def is_failed_enough(job: Job) -> bool:
    """Whether so many tasks failed that the rest is cancelled (`--max-fails`)."""
    return job.record.max_fails is not None and job.counts[FAILED] >= job.record.max_fails


# ---- queueing again ----


def on_retry(core: "Core", peer: int, principal: Principal, message: Retry) -> None:
    """Queue again what failed (or was cancelled or skipped). The driver answers with the document."""
    job = _job_of(core, peer, principal, message)
    if job is None:
        return
    if job.is_ended:
        # Its array of states is on disk alone.
        core.effects.append(ReadJob(job.id, peer, message.request, message.failed_only))
    else:
        _requeue(core, job, message.failed_only)
        core.answers.append((peer, message.request, job.id))


def on_job_read(core: "Core", event: JobRead) -> None:
    """An ended job is back in memory: open it again if it has something to do."""
    effect = event.effect
    ended = core.jobs[effect.job]
    if ended.is_ended and event.restored.last_serial < ended.serial:
        # While it was being read another request opened it, and it has ended again.
        core.effects.append(effect)
        return
    if ended.is_ended and not core.degraded:
        job = Job(event.restored.record, ended.definition, event.restored.chunks)
        job.restore(event.restored)
        if any(job.counts[state] for state in _retried_states(effect.failed_only)):
            core.effects.append(ResumeRecord(job.id))
            core.add_job(job)
            _requeue(core, job, effect.failed_only)
    core.answers.append((effect.peer, effect.request, effect.job))


def _retried_states(failed_only: bool) -> list[int]:
    return [FAILED] if failed_only else [FAILED, CANCELLED, SKIPPED]


def _requeue(core: "Core", job: Job, failed_only: bool) -> None:
    states = _retried_states(failed_only)
    if job.requeue(states):
        write_outcome(core, job, Outcome(job.id, job.serial + 1, "", [], states=states, sweep=QUEUED))
        core.backlog.add(job)
