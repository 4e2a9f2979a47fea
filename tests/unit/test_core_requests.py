"""The coordinator's core: requirements, matrices, queueing again, and explaining. No I/O, no sleep."""

import gc
import tracemalloc

import pytest

from dcoord.core.effects import ReadJob
from dcoord.core.events import DefinitionsChanged, JobRead
from dcoord.core.explain import explain
from dcoord.core.records import JobRecord, OutcomeRecord, ResumeRecord
from districomp.messages import (
    PROTOCOL_VERSION,
    Ask,
    Assign,
    Cancel,
    Has,
    HelloClient,
    JobSpec,
    Refused,
    Retry,
    Submit,
)
from districomp.model import Machine
from districomp.taskdef import Param, matrix_params
from tests.unit.corelab import Lab, counts, definition, restore


def cause(lab: Lab, job: int, index: int = 0) -> str:
    return explain(lab.core, lab.core.jobs[job], index).cause


# ---- requirements ----


def test_a_task_goes_only_to_a_machine_that_meets_its_requirement() -> None:
    lab = Lab()
    lab.join(1, machine=Machine(arch="x86_64"))
    arm = lab.submit(1, "arm")
    plain = lab.submit(1)
    assert [job for _, job, _ in lab.leases(1)] == [plain]
    lab.join(2, machine=Machine(arch="aarch64"))
    assert [job for _, job, _ in lab.leases(2)] == [arm]


def test_programs_are_asked_for_and_asked_again() -> None:
    lab = Lab()
    lab.join(1, machine=Machine(labels=["lab"]))
    lab.submit(1, "picky")
    assert lab.take(Ask, 1)[0].programs == ["povray"]
    lab.receive(1, Has(["povray"], []))
    assert not lab.leases(1)
    for _ in range(3):
        lab.advance(10.0)
        lab.receive(1, Has([], []))
    assert lab.take(Ask, 1)[0].programs == ["povray"]
    lab.receive(1, Has(["povray"], ["povray"]))
    assert len(lab.leases(1)) == 1


def test_a_label_that_is_missing_is_enough_to_be_passed_over() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1, "picky")
    lab.receive(1, Has(["povray"], ["povray"]))
    assert not lab.leases(1)
    assert "label lab" in explain(lab.core, lab.core.jobs[job], 0).text


def test_a_worker_that_was_full_gets_what_it_alone_can_run() -> None:
    lab = Lab()
    lab.join(1, machine=Machine(arch="aarch64"))
    lab.submit(1)
    held = lab.leases(1)
    arm = lab.submit(1, "arm")
    lab.report(1, held)
    assert [job for _, job, _ in lab.leases(1)] == [arm]


def test_a_requirement_is_forgotten_with_its_last_job() -> None:
    lab = Lab()
    lab.join(1, machine=Machine(arch="aarch64"))
    lab.submit(1, "arm")
    lab.report(1, lab.leases(1))
    assert not lab.core.fleet.roomy


# ---- matrix ----


def test_a_matrix_is_a_task_a_combination_the_last_varying_fastest() -> None:
    lab = Lab()
    lab.join(1, slots=8)
    job = lab.submit(name="params", matrix=[("size", ["1", "2", "3"])])
    (spec,) = lab.take(JobSpec)
    assert spec.matrix == [("size", [1, 2, 3])]
    assert lab.core.jobs[job].record.count == 3
    assert [matrix_params([("a", [1, 2]), ("b", [7, 8, 9])], k) for k in (0, 1, 3, 5)] == [
        {"a": 1, "b": 7},
        {"a": 1, "b": 8},
        {"a": 2, "b": 7},
        {"a": 2, "b": 9},
    ]
    later = lab.restart()
    assert later.core.jobs[job].record.matrix == [("size", [1, 2, 3])]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("many", {"matrix": [("size", ["many"])]}),
        ("did you mean 'size'", {"matrix": [("sise", [1])]}),
        ("no values", {"matrix": [("size", [])]}),
        ("twice", {"matrix": [("size", [1]), ("size", [2])]}),
        ("and in the matrix", {"matrix": [("size", [1])], "params": {"size": 1}}),
        ("one of", {"matrix": [("size", [1])], "numbers": (0, 1), "count": 3}),
        ("one of", {"matrix": [("size", [1])], "items": [b"x"]}),
    ],
)
def test_a_bad_matrix_is_refused(text: str, keys: dict[str, object]) -> None:
    lab = Lab()
    fields: dict[str, object] = {"params": {}} | keys
    lab.receive(900, Submit(3, "", "params", **fields))  # type: ignore[arg-type]
    (refused,) = lab.take(Refused)
    assert text in refused.text
    assert not lab.core.jobs


# ---- queueing again ----


def failed_job(lab: Lab) -> int:
    """Job of 6: two done, two failed, the rest cancelled at the second failure."""
    lab.join(1)
    job = lab.submit(6, "once", max_fails=2)
    for reason in ("done", "exit", "done", "exit"):
        lab.report(1, lab.leases(1), reason, exit_codes=[0 if reason == "done" else 1])
    assert counts(lab, job) == {"done": 2, "failed": 2, "cancelled": 2}
    return job


def test_failed_tasks_are_queued_again_and_run_as_if_new() -> None:
    lab = Lab()
    job = failed_job(lab)
    lab.receive(900, Retry(5, job, failed_only=True))
    assert (900, 5, job) in lab.core.answers
    assert counts(lab, job) == {"running": 1, "queued": 1, "done": 2, "cancelled": 2}
    assert [index for _, _, index in lab.leases(1)] == [1]
    assert lab.recorded(ResumeRecord)


def test_all_that_did_not_end_well_is_queued_again() -> None:
    lab = Lab()
    job = failed_job(lab)
    lab.receive(900, Retry(5, job))
    ended: list[int] = []
    while lab.core.jobs[job].counts[2] < 6:
        held = lab.leases(1)
        ended += [index for _, _, index in held]
        lab.report(1, held)
    assert sorted(ended) == [1, 3, 4, 5]
    assert lab.core.jobs[job].state == "done"


def test_a_restart_remembers_what_was_queued_again() -> None:
    lab = Lab()
    job = failed_job(lab)
    lab.receive(900, Retry(5, job, failed_only=True))
    later = lab.restart()
    assert counts(later, job) == {"queued": 2, "done": 2, "cancelled": 2}


@pytest.mark.parametrize("by_params", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_ended_job_is_queued_again_with_all_that_it_was_given(restarted: bool, by_params: bool) -> None:
    lab = Lab()
    given = {"params": {"size": 1}} if by_params else {"matrix": [("size", [1, 2])]}
    job = lab.submit(name="params", **given)
    lab.receive(900, Cancel(5, job))
    lab = lab.restart() if restarted else lab
    assert not lab.core.jobs[job].record.params
    assert not lab.core.jobs[job].record.matrix
    lab.receive(900, Retry(5, job))
    lab.join(1, slots=2)
    (spec,) = lab.take(JobSpec, 1)
    assert {"params": spec.params} | {"matrix": spec.matrix} == {"params": {}, "matrix": []} | given
    assert lab.leases(1)


def test_a_job_that_ends_at_once_is_written_down_whole() -> None:
    lab = Lab()
    submit = Submit(4, "", "params", {"size": 3}, count=1)
    lab.receive(900, submit, Cancel(5, 1))
    assert lab.core.jobs[1].is_ended
    assert lab.recorded(JobRecord)[0].params == {"size": 3}


def test_ended_jobs_keep_no_params() -> None:
    lab = Lab()
    texts = definition("texts", params={"text": Param("str")})
    lab.feed(DefinitionsChanged({"texts": texts}))
    lab.join(1)

    def run(jobs: int) -> int:
        for number in range(jobs):
            lab.submit(name="texts", params={"text": f"{number:65536}"})
            lab.report(1, lab.leases(1))
            for kept in (lab.records, lab.sent, lab.sealed):
                kept.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        begun = run(10)
        assert run(100) - begun < 100 * 4096
    finally:
        tracemalloc.stop()


def test_retrying_what_all_went_well_changes_nothing() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    lab.report(1, lab.leases(1))
    lab.receive(900, Retry(5, job))
    assert lab.core.jobs[job].is_ended
    assert (900, 5, job) in lab.core.answers
    lab.receive(900, Retry(6, 77))
    assert lab.take(Refused)[0].code == "unknown_job"


def test_machines_are_asked_again_once_however_many_jobs_need_it() -> None:
    lab = Lab()
    lab.join(1, machine=Machine(labels=["lab"]))
    for _ in range(3):
        lab.receive(900, Cancel(3, lab.submit(1, "picky")))
        lab.receive(1, Has(["povray"], []))
        lab.advance(10.0)
    lab.submit(1, "picky")
    lab.take(Ask)
    for _ in range(3):
        lab.receive(1, Has(["povray"], []))
        lab.advance(10.0)
    assert len(lab.take(Ask)) == 1


def test_of_a_task_that_was_cancelled_meanwhile_an_old_backoff_is_forgotten() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(2)
    lab.report(1, lab.leases(1)[:1], "exit")
    lab.receive(900, Cancel(3, job, [0]))
    lab.receive(900, Retry(4, job))
    lab.advance(0.5)
    lab.report(1, lab.leases(1), "exit")
    lab.advance(0.9)
    assert not lab.leases(1)
    lab.advance(0.1)
    assert [index for _, _, index in lab.leases(1)] == [0]


def test_a_task_that_still_stops_is_not_mistaken_for_the_one_that_was_queued_again() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    stopping = lab.leases(1)
    lab.receive(900, Cancel(3, job))
    lab.receive(900, Retry(4, job))
    lab.report(1, stopping, "cancelled")
    assert not lab.closed
    assert counts(lab, job) == {"running": 1}
    lab.report(1, lab.leases(1))
    assert counts(lab, job) == {"done": 1}


def test_a_job_that_ended_again_while_it_was_read_is_read_again() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1, "once")
    lab.report(1, lab.leases(1), "exit")
    lab.receive(900, HelloClient(PROTOCOL_VERSION, "test"))
    before = restore(lab.records, 0, heads=True).jobs[0]
    lab.receive(900, Retry(4, job))
    lab.report(1, lab.leases(1), "exit")
    assert lab.core.jobs[job].is_ended
    lab.feed(JobRead(ReadJob(job, 900, 5, False), before))
    assert counts(lab, job) == {"running": 1}
    serials = [record.outcome.serial for record in lab.recorded(OutcomeRecord)]
    assert serials == [1, 2, 3, 4]
    assert lab.core.answers == [(900, 4, job), (900, 5, job)]


# ---- explaining ----


def test_each_cause_is_named() -> None:
    lab = Lab()
    job = lab.submit(2)
    assert cause(lab, job) == "no_worker"
    lab.join(1)
    assert cause(lab, job, 0) == "in_line"
    assert cause(lab, job, 1) == "no_free_slot"
    lab.report(1, lab.leases(1), "exit", exit_codes=[1])
    assert cause(lab, job, 0) == "backoff"
    lab.report(1, lab.leases(1))
    assert cause(lab, job, 1) == "ended"
    assert cause(lab, lab.submit(1, "arm")) == "requirement"
    lab.receive(900, Cancel(1, job))
    assert cause(lab, job, 0) == "ended"


def test_after_a_restart_the_cause_names_who_is_missing() -> None:
    lab = Lab()
    lab.join(1, worker="ann")
    job = lab.submit(1)
    later = lab.restart()
    document = explain(later.core, later.core.jobs[job], 0)
    assert document.cause == "restart"
    assert "ann" in document.text and document.until is not None
    assert not [m for m in later.sent if isinstance(m, Assign)]
    assert len(lab.recorded(JobRecord)) == 1
