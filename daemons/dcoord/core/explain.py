"""Why a task is where it is: one pure function from the core's state to one cause. Reads, never changes."""

from dcoord.core.core import Core
from dcoord.core.fleet import Worker
from dcoord.core.job import Job
from districomp.documents import ExplainDocument, iso_time
from districomp.model import QUEUED, RUNNING, STATE_NAMES, task_text
from districomp.taskdef import Requires

LACKS_NAMED = 3
"""So many workers are named with what they lack."""


def explain(core: Core, job: Job, index: int) -> ExplainDocument:
    """A task's state and the one cause of it. A task of an ended job is explained by its last attempt: ask for that."""
    if job.is_ended:
        text = f"job {job.id} is {job.state}; see: dctl task show {task_text(job.id, index)}"
        return ExplainDocument(task_text(job.id, index), job.state, "ended", text)
    state = job.states[index]
    if state == RUNNING:
        cause, text, until = *_running(core, job, index), None
    elif state == QUEUED:
        cause, text, until = _queued(core, job, index)
    else:
        cause, text, until = "ended", f"it has ended; see: dctl task show {task_text(job.id, index)}", None
    return ExplainDocument(task_text(job.id, index), STATE_NAMES[state], cause, text, iso_time(until))


def _running(core: Core, job: Job, index: int) -> tuple[str, str]:
    for worker in core.fleet.by_id.values():
        for lease in worker.leases.values():
            if lease.job is job and lease.index == index and not lease.stopping:
                if not worker.peer:
                    return "worker_away", f"worker {worker.name} has it, and its connection is closed at the moment"
                if lease.started is None:
                    return "in_line", f"worker {worker.name} has it in its line, behind what runs there"
                return "runs", f"it runs on worker {worker.name} since {iso_time(lease.started)}"
    raise AssertionError(f"task {job.id}.{index} runs and nobody has it")


def _queued(core: Core, job: Job, index: int) -> tuple[str, str, float | None]:
    if core.degraded:
        return "degraded", core.degraded, None
    if index in job.waiting:
        until = job.waiting[index]
        return "backoff", f"its last attempt failed; the next one may begin at {iso_time(until)}", until
    if index in job.doubt:
        names = ", ".join(core.returning.values()) or "nobody"
        text = f"the coordinator was restarted, and a worker that is not back yet may have it: {names}"
        return "restart", text, core.doubt_until
    if core.is_short_of_space:
        return "disk_full", f"the coordinator's disk is nearly full: {core.free_bytes:,} bytes are left", None
    present = [worker for worker in core.fleet.by_id.values() if worker.is_ready]
    if not present:
        return "no_worker", "no worker is connected; start dworker on a machine", None
    requires = job.definition.requires
    able = [worker for worker in present if worker.meets(requires)]
    if not able:
        return "requirement", _nobody_meets(present, requires), None
    if job.payloads is not None and job.payloads.loaded(index) is None and job not in core.backlog:
        return "reading", "its data is being read from the journal", None
    if all(len(worker.leases) >= worker.slots for worker in able):
        slots = sum(worker.slots for worker in able)
        return "no_free_slot", f"all {slots} slots of the {len(able)} workers that can run it are taken", None
    return "next", "it is next in line", None


def _nobody_meets(present: list[Worker], requires: Requires) -> str:
    lacks = [f"{worker.name} lacks {worker.lacks(requires) or 'an answer yet'}" for worker in present[:LACKS_NAMED]]
    more = f" and {len(present) - LACKS_NAMED} more lack something" if len(present) > LACKS_NAMED else ""
    return f"no connected worker meets what its definition requires: {'; '.join(lacks)}{more}"
