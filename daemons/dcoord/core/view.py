"""What the core tells people: documents made from its state. Reads, never changes.

What the core has forgotten (attempts, results, the tasks of ended jobs) the driver adds from the journal.
"""

from dcoord.core.administer import pending_document, revoked_document
from dcoord.core.core import Core
from dcoord.core.fleet import Worker
from dcoord.core.job import Job
from districomp import __version__
from districomp.documents import Counts, JobDocument, StatusDocument, WorkerDocument, iso_time
from districomp.model import QUEUED, RUNNING


def status_document(core: Core, now: float) -> StatusDocument:
    """`dctl status`. Tasks by state are those of all jobs that the coordinator knows."""
    totals = [0] * 6
    for job in core.jobs.values():
        for state, count in enumerate(job.counts):
            totals[state] += count
    connected = [worker for worker in core.fleet.by_id.values() if worker.peer]
    return StatusDocument(
        cluster=core.settings.cluster,
        name=core.settings.name,
        version=__version__,
        epoch=core.epoch,
        uptime_s=round(max(0.0, now - core.begun), 3),
        workers=len(connected),
        slots=sum(worker.slots for worker in connected),
        tasks=Counts(*totals),
        tasks_per_s=round(core.tasks_per_s(now), 1),
    )


def job_document(job: Job, now: float) -> JobDocument:
    """`dctl job show`."""
    return JobDocument(
        job=job.id,
        name=job.record.name,
        definition=job.record.definition_name,
        state=job.state,
        tasks=job.record.count,
        counts=Counts(*job.counts),
        submitted=iso_time(job.record.submitted) or "",
        started=iso_time(job.started),
        ended=iso_time(job.ended),
        eta_s=_eta_s(job, now),
    )


def _eta_s(job: Job, now: float) -> float | None:
    """Seconds to the end at the job's mean speed so far; None when there is nothing to go by."""
    if job.is_ended or job.started is None or job.finished == 0:
        return None
    left = job.counts[QUEUED] + job.counts[RUNNING]
    return round(left * max(0.0, now - job.started) / job.finished, 1)


def worker_documents(core: Core, now: float) -> list[WorkerDocument]:
    """`dctl worker list`: the pending ones, those that are here, the lost, the revoked."""
    documents = [pending_document(pending, now) for pending in core.trust.pending.values()]
    documents += [_worker_document(worker, now) for worker in core.fleet.by_id.values()]
    documents += [_worker_document(worker, now) for worker in core.fleet.lost.values()]
    for identity in core.trust.identities.values():
        if identity.role == "worker" and identity.revoked and not identity.removed:
            documents.append(revoked_document(identity, now))
    return documents


def _worker_document(worker: Worker, now: float) -> WorkerDocument:
    return WorkerDocument(
        worker=worker.id,
        name=worker.name,
        state=worker.state,
        slots=worker.slots,
        running=worker.started,
        arch=worker.machine.arch,
        memory_bytes=worker.machine.memory_bytes,
        address=worker.address,
        last_seen_s=round(max(0.0, now - worker.heard), 3),
    )
