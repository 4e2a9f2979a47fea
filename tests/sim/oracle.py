"""What really happened, beside what the coordinator wrote down: every promise is checked where it could break.

Hears of each start and end of an attempt from the simulated runners, of each commit from the driver, of each
answer from the clients. Keeps its own state of every task, by the rules of docs/architecture.md and not by the core's code.
"""

from typing import Final

import msgspec

from dcoord.core.core import Core
from dcoord.core.records import DefinitionRecord, JobEndRecord, JobRecord, OutcomeRecord, Record, WorkerRecord
from districomp.model import (
    CANCELLED,
    DONE,
    ENDED_STATES,
    FAILED,
    QUEUED,
    STATE_NAMES,
    WORKER_LOSSES_MAX,
    Item,
    Payload,
)
from districomp.outcome import Outcome
from districomp.taskdef import Definition, decode_definition
from tests.sim.faults import Tally
from tests.sim.journal import Journal
from tests.sim.members import Members
from tests.sim.profiles import Fate
from tests.sim.promise import promise
from tests.sim.submission import Submission

LOST: Final = ("worker_lost", "crash_limit")
"""What the coordinator says of an attempt whose worker it has lost."""
STOPPED: Final = ("worker_stopped", "cancelled")
"""What a worker says of an attempt that it was told to stop; it may not count against the task."""


class Attempt(msgspec.Struct, frozen=True):
    """One execution, as a worker was told to do it."""

    job: int
    index: int
    number: int
    lease: int
    item: Item | None
    definition: Definition


class Truth:
    """A job: who wanted it, and what became of each task."""

    def __init__(self, record: JobRecord, submission: Submission, definition: Definition) -> None:
        self.job = record.job
        self.submission = submission
        self.definition = definition
        self.count = record.count
        self.max_fails = record.max_fails
        self.states = bytearray(record.count)
        self.failures: dict[int, int] = {}
        self.losses: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.produced: dict[int, list[Payload | None]] = {}
        self.processes: dict[tuple[int, int], list[int]] = {}
        """By index and attempt: which worker processes have begun it."""
        self.mishaps: dict[int, list[str]] = {}
        """Attempts that ended badly, and are not written down yet."""
        self.is_ended = False


class Oracle:
    """Sees everything and decides nothing."""

    journal: Journal

    def __init__(self, tally: Tally) -> None:
        self.members = Members(tally)
        self.is_healed = False
        self.is_calm = False
        """Healed for so long that nobody can be lost any more."""
        self.doubled: dict[str, None] = {}
        """Worker ids that two machines have, or had."""
        self.jobs: dict[int, Truth] = {}
        self.submissions: dict[str, Submission] = {}
        self.acknowledged: dict[str, int] = {}
        self.attempts = 0
        self.attempts_lost = 0
        self.retries = 0
        self._by_request: dict[str, int] = {}
        self._definitions: dict[str, Definition] = {}
        self._leases: dict[int, tuple[int, int]] = {}

    # ---- what the workers do ----

    def started(self, attempt: Attempt, process: int) -> None:
        """An attempt begins in some worker's process."""
        self.attempts += 1
        job, index = attempt.job, attempt.index
        name = f"{job}.{index}"
        promise(job in self.jobs, f"task {name} runs, and its job is not in the journal")
        truth = self.jobs[job]
        promise(index < self.journal.frontier(job), f"task {name} runs, and the journal's frontier is below it")
        promise(attempt.item == truth.submission.item(index), f"task {name} runs with another task's item")
        promise(attempt.definition == truth.definition, f"task {name} runs by another definition")
        promise(attempt.lease not in self._leases, f"task {name}: lease {attempt.lease} runs twice")
        self._leases[attempt.lease] = job, index
        truth.processes.setdefault((index, attempt.number), []).append(process)
        starts = truth.starts[index] = truth.starts.get(index, 0) + 1
        promise(starts == 1 or truth.definition.rerun != "never", f"task {name} may run once, and begins again")

    def ended(self, attempt: Attempt, fate: Fate) -> None:
        """An attempt ended on its worker, which may tell."""
        truth = self.jobs[attempt.job]
        if fate.reason == "done":
            truth.produced.setdefault(attempt.index, []).append(fate.result)
        else:
            truth.mishaps.setdefault(attempt.index, []).append(fate.reason)

    def is_wanted(self, attempt: Attempt) -> bool:
        """Whether an attempt's task has not ended."""
        return self.jobs[attempt.job].states[attempt.index] not in ENDED_STATES

    # ---- what the coordinator writes ----

    def committed(self, records: list[Record], core: Core) -> None:
        """These are in the journal now, written by this core."""
        self.members.begin_commit()
        for record in records:
            self.members.committed(record)
            match record:
                case OutcomeRecord(outcome=outcome):
                    self._on_outcome(outcome)
                    self.members.check_outcome(outcome)
                    self._check_loss(outcome, core)
                case JobRecord():
                    self._on_job(record)
                case JobEndRecord():
                    self._on_end(record)
                case WorkerRecord(present=False):
                    promise(not self.is_calm, f"{record.worker} is well, and was declared lost")
                case DefinitionRecord():
                    self._definitions[record.digest] = decode_definition(record.body)

        self.members.end_commit()

    def _on_job(self, record: JobRecord) -> None:
        submission = self.submissions[record.request_id]
        promise(record.request_id not in self._by_request, f"submission {record.request_id} is recorded twice")
        promise(record.count == submission.count, f"job {record.job} has {record.count} tasks, not {submission.count}")
        self._by_request[record.request_id] = record.job
        self.jobs[record.job] = Truth(record, submission, self._definitions[record.definition])

    def _on_outcome(self, outcome: Outcome) -> None:
        truth = self.jobs[outcome.job]
        promise(not truth.is_ended, f"job {outcome.job} has ended, and something is recorded for it")
        if outcome.sweep is not None:
            promise(
                truth.submission.is_cancelled(None) or self._has_failed_enough(truth), f"job {truth.job}: why swept?"
            )
            truth.states = truth.states.replace(bytes((QUEUED,)), bytes((outcome.sweep,)))
        for place, index in enumerate(outcome.indexes):
            state = outcome.states[place] if outcome.states else DONE
            reason = outcome.reasons[place] if outcome.reasons else "done"
            name = f"{truth.job}.{index}"
            old = truth.states[index]
            promise(
                old not in ENDED_STATES,
                f"task {name} is {STATE_NAMES[old]}, and {STATE_NAMES[state]} ({reason}) is recorded",
            )
            truth.states[index] = state
            if state == DONE:
                result = outcome.results[place] if outcome.results else None
                promise(reason == "done", f"task {name} is done for the reason {reason}")
                promise(
                    result in truth.produced.get(index, []), f"task {name}: nobody produced the result that is recorded"
                )
            elif state == CANCELLED:
                promise(
                    truth.submission.is_cancelled(index) or self._has_failed_enough(truth),
                    f"task {name} is cancelled, and nobody wanted that",
                )
            else:
                self._on_mishap(truth, name, outcome, place)

    def _on_mishap(self, truth: Truth, name: str, outcome: Outcome, place: int) -> None:
        index, state, reason = outcome.indexes[place], outcome.states[place], outcome.reasons[place]
        definition = truth.definition
        promise(state in (QUEUED, FAILED), f"task {name} became {STATE_NAMES[state]}")
        promise(reason != "done", f"task {name}: an attempt that is done counts as a failure")
        self.retries += state == QUEUED
        if reason in LOST or reason == "outcome_unknown":
            self.attempts_lost += 1
        if definition.rerun == "never":
            promise(state == FAILED, f"task {name} may run once, and is queued again ({reason})")
        if reason in LOST:
            losses = truth.losses[index] = truth.losses.get(index, 0) + 1
            promise(losses <= WORKER_LOSSES_MAX, f"task {name} has lost {losses} workers")
            promise((state == FAILED) == (losses == WORKER_LOSSES_MAX), f"task {name}: {losses} losses, and {state}")
            return
        if reason == "outcome_unknown":
            promise(definition.rerun == "never", f"task {name} may run again, and failed with {reason}")
            return
        if reason in STOPPED:
            promise(state == QUEUED, f"task {name} failed because its worker was told to stop it ({reason})")
            return
        mishaps = truth.mishaps.get(index, [])
        promise(reason in mishaps, f"task {name}: {reason} is recorded, and did not happen (again)")
        mishaps.remove(reason)
        failures = truth.failures[index] = truth.failures.get(index, 0) + 1
        code = outcome.exit_codes[place] if outcome.exit_codes else None
        is_last = failures > definition.retries.max or (reason == "exit" and code in definition.retries.never_on)
        if definition.rerun != "never":
            promise((state == FAILED) == is_last, f"task {name}: {failures} failures ({reason}), and {state}")

    def _check_loss(self, outcome: Outcome, core: Core) -> None:
        """A worker that is here cannot have lost what it has begun: it holds it, or keeps its report."""
        worker = core.fleet.by_id.get(outcome.worker)
        if worker is None or not worker.peer or worker.id in self.doubled:
            return
        truth = self.jobs[outcome.job]
        for place, reason in enumerate(outcome.reasons):
            number = outcome.attempts[place] if outcome.attempts else 1
            began = truth.processes.get((outcome.indexes[place], number), [])
            promise(
                reason not in LOST or worker.process not in began,
                f"task {truth.job}.{outcome.indexes[place]} is lost, and {worker.id}, which has begun it, is here",
            )

    @staticmethod
    def _has_failed_enough(truth: Truth) -> bool:
        return truth.max_fails is not None and truth.states.count(FAILED) >= truth.max_fails

    def _on_end(self, record: JobEndRecord) -> None:
        truth = self.jobs[record.job]
        counts = [truth.states.count(state) for state in range(len(STATE_NAMES))]
        promise(not truth.is_ended, f"job {record.job} ended twice")
        promise(record.counts == counts, f"job {record.job} ended as {record.counts}, and is {counts}")
        promise(not truth.states.count(QUEUED), f"job {record.job} ended with tasks to do")
        truth.is_ended = True

    def compare(self, core: Core) -> None:
        """A core that starts from the journal knows what is in it."""
        self.members.compare(core)
        promise(list(core.jobs) == list(self.jobs), f"jobs {list(core.jobs)} came back, not {list(self.jobs)}")
        for number, truth in self.jobs.items():
            job = core.jobs[number]
            promise(job.is_ended == truth.is_ended, f"job {number} came back as {job.state}")
            if not truth.is_ended:
                promise(job.states == truth.states, f"job {number}: its tasks came back in other states")

    # ---- what the clients are told ----

    def accepted(self, submission: Submission, job: int, tasks: int) -> None:
        """A client was told that its submission is on disk."""
        request = submission.request_id
        promise(self._by_request.get(request) == job, f"submission {request} was acknowledged as job {job}, and is not")
        promise(tasks == submission.count, f"job {job} was acknowledged with {tasks} tasks, not {submission.count}")
        promise(self.acknowledged.setdefault(request, job) == job, f"submission {request} was acknowledged twice")

    def cancel_answered(self, job: int, indexes: list[int]) -> None:
        """A client was told that its cancel is carried out."""
        states = self.jobs[job].states
        for index in indexes or range(len(states)):
            state = states[index]
            promise(state in ENDED_STATES, f"task {job}.{index} was cancelled, and is {STATE_NAMES[state]}")

    def results_read(self, job: int, states: bytes) -> None:
        """A client has read a job's rows to the end."""
        promise(states == self.jobs[job].states, f"job {job}: its rows say something else than its tasks' states")

    def totals(self) -> list[int]:
        """Tasks by state."""
        return [sum(truth.states.count(state) for truth in self.jobs.values()) for state in range(len(STATE_NAMES))]

    def unfinished(self) -> list[str]:
        """What has not ended though it was acknowledged, or not acknowledged though it was submitted."""
        left = [f"submission {request}" for request in self.submissions if request not in self.acknowledged]
        unended = [truth for truth in self.jobs.values() if not truth.is_ended]
        left += [f"job {t.job} ({t.definition.name}, {t.states.count(QUEUED)} of {t.count} tasks)" for t in unended]
        return left
