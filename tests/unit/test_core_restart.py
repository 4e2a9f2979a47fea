"""The coordinator's core: after a restart, and cancelling. No I/O, no sleep."""

from unittest.mock import Mock

import pytest
from msgspec.structs import replace

from dcoord.core import join
from dcoord.core.records import FrontierRecord, OutcomeRecord
from districomp.messages import (
    BATCH_TASKS,
    Ack,
    Assign,
    Cancel,
    Heartbeat,
    Inventory,
    Stop,
)
from districomp.model import FAILED
from tests.unit.corelab import Lab, counts, restore

NOTHING = Inventory(0, [], [], [], [], True)

# ---- restart ----


def test_after_a_restart_a_worker_goes_on_with_what_it_holds() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(4)
    held = lab.leases(1)
    lab.report(1, held[:1])
    more = lab.leases(1)
    later = lab.restart()
    later.join(5, worker="w1", slots=2, inventory=False)
    later.prove(5, "w1")
    kept = [held[1], *more]
    later.receive(
        5, Inventory(job, [t for t, _, _ in kept], [i for _, _, i in kept], [1] * len(kept), [None] * len(kept), True)
    )
    assert not later.take(Stop)
    later.report(5, kept)
    later.report(5, later.leases(5))
    assert counts(later, job) == {"done": 4}
    assert sum(len(o.outcome.indexes) for o in later.recorded(OutcomeRecord)) == 4


def test_after_a_restart_what_is_above_the_frontier_is_leased_at_once_and_the_rest_waits() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    lab.submit(5000)
    later = lab.restart()
    later.join(2, slots=2)
    frontier = lab.recorded(FrontierRecord)[-1].frontier
    assert [i for _, _, i in later.leases(2)] == [frontier, frontier + 1]
    later.advance(16.0)
    assert list(later.core.jobs[1].doubt) == []
    assert later.core.jobs[1].next_index() == 0


def test_only_the_last_worker_to_come_back_settles_what_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()
    lab.join(1)
    lab.join(2)
    lab.submit(2)
    settled = Mock(side_effect=join.settle_doubt)
    monkeypatch.setattr(join, "settle_doubt", settled)
    later = lab.restart()
    later.join(5, worker="w1")
    assert not settled.called
    later.join(6, worker="w2")
    settled.assert_called_once()
    later.join(7)
    later.join(8, worker="w1", process=2)
    settled.assert_called_once()


def test_a_seal_of_a_job_that_a_copy_of_the_journal_does_not_have_yet_is_passed_over() -> None:
    lab = Lab()
    copy = restore(lab.records, lab.core.epoch + 1)
    lab.join(1, slots=3)
    lab.submit(3)
    assert len(lab.leases(1)) == 3
    later = Lab(copy, lab.now)
    later.sealed = lab.sealed
    job = later.submit(1)
    later.join(5, worker="w1", inventory=False)
    later.prove(5, "w1")
    assert not later.core.fleet.by_id["w1"].sealed
    later.receive(5, NOTHING)
    assert [(job, index) for _, job, index in later.leases(5)] == [(job, 0)]


def test_once_every_worker_is_back_nothing_waits() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    lab.submit(2)
    later = lab.restart()
    later.join(7, worker="w1", slots=2)
    assert len(later.leases(7)) == 2


def test_a_result_of_before_the_restart_counts_while_its_task_is_unfinished() -> None:
    lab = Lab()
    lab.join(1)
    lab.join(2)
    job = lab.submit(2)
    held = lab.leases(1)
    later = lab.restart()
    later.join(9, worker="w1", inventory=False)
    later.prove(9, "w1")
    later.report(9, held)
    assert counts(later, job) == {"queued": 1, "done": 1}
    later.report(9, held)
    assert counts(later, job) == {"queued": 1, "done": 1}


@pytest.mark.parametrize("proof", ["none", "its own", "made up", "of the other", "of the other, for another task"])
def test_after_a_restart_nobody_has_what_another_had(proof: str) -> None:
    lab = Lab()
    lab.join(1)
    lab.join(2)
    job = lab.submit(3)
    mine, others = lab.leases(1), lab.leases(2)
    ((other, sealed),) = [pair for pair in lab.sealed if pair[0] == "w2"]
    later = lab.restart()
    later.join(8, worker="w1", inventory=False)
    if proof == "its own":
        later.prove(8, "w1")
    elif proof == "made up":
        later.receive(8, replace(sealed, seal=bytes(len(sealed.seal))))
    elif proof == "of the other":
        later.receive(8, sealed)
    elif proof == "of the other, for another task":
        later.receive(8, replace(sealed, indexes=[2]))
    later.report(8, others)
    later.receive(8, Inventory(job, [others[0][0]], [others[0][2]], [1], [later.now], False), NOTHING)
    assert later.take(Stop, 8)[0].leases == [others[0][0]]
    assert counts(later, job) == {"queued": 3}
    later.join(9, worker=other, inventory=False)
    later.prove(9, other)
    later.report(9, others)
    assert counts(later, job) == {"queued": 2, "done": 1}
    later.report(8, mine)
    assert counts(later, job)["done"] == 1, "it is too late to prove anything"


def test_a_seal_after_the_inventory_is_a_breach() -> None:
    lab = Lab()
    lab.join(1)
    lab.submit(1)
    lab.prove(1, "w1")
    assert [close.code for close in lab.closed] == ["protocol"]


def test_a_seal_of_another_journal_is_passed_over() -> None:
    lab = Lab()
    lab.join(1)
    lab.submit(2)
    later = lab.restart()
    later.core.seal_key = b"another journal's"
    later.join(5, worker="w1", inventory=False)
    later.prove(5, "w1")
    assert not later.closed
    assert not later.core.fleet.by_id["w1"].sealed


def test_only_what_is_wanted_is_remembered_of_what_is_proved() -> None:
    lab = Lab()
    lab.join(1, slots=3)
    job = lab.submit(3)
    held = lab.leases(1)
    lab.report(1, held[:1])
    later = lab.restart()
    later.join(5, worker="w1", slots=3, inventory=False)
    later.prove(5, "w1")
    assert later.core.fleet.by_id["w1"].sealed == {held[1][0]: (job, 1), held[2][0]: (job, 2)}
    later.receive(5, NOTHING)
    assert not later.core.fleet.by_id["w1"].sealed


def test_what_may_run_once_and_never_comes_back_fails_with_its_reason() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(5, "once")
    later = lab.restart()
    later.join(2)
    later.receive(2, Heartbeat())
    for _ in range(4):
        later.advance(4.0)
        later.receive(2, Heartbeat())
    assert later.core.jobs[job].counts[FAILED] == 2
    assert later.recorded(OutcomeRecord)[-1].outcome.reasons == ["outcome_unknown"] * 2


def test_an_ended_job_is_remembered_by_its_counts() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    lab.report(1, lab.leases(1))
    later = lab.restart()
    assert counts(later, job) == {"done": 1}
    assert later.core.jobs[job].state == "done"


def test_retries_survive_a_restart() -> None:
    lab = Lab()
    lab.join(1)
    lab.submit(1)
    lab.report(1, lab.leases(1), "exit", exit_codes=[1])
    later = lab.restart()
    later.join(5, worker="w1")
    (assign,) = [m for _, m in later.sent if isinstance(m, Assign)]
    assert assign.attempts == [2]


# ---- cancel ----


def test_cancel_is_recorded_at_once_and_late_reports_are_refused() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    job = lab.submit(100)
    held = lab.leases(1)
    lab.receive(900, Cancel(9, job))
    assert counts(lab, job) == {"cancelled": 100}
    assert lab.take(Stop, 1)[0].leases == [held[0][0]]
    lab.report(1, held)
    assert counts(lab, job) == {"cancelled": 100}
    assert lab.take(Ack)
    assert not any(o.outcome.states == [] and o.outcome.indexes for o in lab.recorded(OutcomeRecord))
    assert counts(lab.restart(), job) == {"cancelled": 100}


def test_the_slot_of_a_cancelled_task_is_busy_until_its_worker_says_ended() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    job = lab.submit(1)
    held = lab.leases(1)
    lab.receive(900, Cancel(9, job))
    lab.submit(1)
    assert not lab.leases(1)
    lab.report(1, held, "cancelled")
    assert lab.leases(1)


def test_some_tasks_of_a_job_can_be_cancelled() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    job = lab.submit(4)
    held = lab.leases(1)
    lab.receive(900, Cancel(9, job, [2, 3]))
    assert counts(lab, job) == {"queued": 1, "running": 1, "cancelled": 2}
    lab.report(1, held)
    lab.report(1, lab.leases(1))
    assert lab.core.jobs[job].state == "cancelled"


def test_however_many_tasks_are_cancelled_each_row_is_a_batch() -> None:
    lab = Lab()
    job = lab.submit(4000)
    lab.receive(900, Cancel(3, job, list(range(3000))))
    rows = lab.recorded(OutcomeRecord)
    assert [len(row.outcome.indexes) for row in rows] == [BATCH_TASKS, BATCH_TASKS, 3000 - 2 * BATCH_TASKS]
    assert counts(lab, job) == {"queued": 1000, "cancelled": 3000}
    assert counts(lab.restart(), job) == {"queued": 1000, "cancelled": 3000}


def test_at_max_fails_the_rest_is_cancelled() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(10, "once", max_fails=2)
    lab.report(1, lab.leases(1), "exit", exit_codes=[1])
    lab.report(1, lab.leases(1), "exit", exit_codes=[1])
    assert counts(lab, job) == {"failed": 2, "cancelled": 8}


def test_however_many_may_run_once_and_are_unknown_each_row_is_a_batch() -> None:
    lab = Lab()
    lab.join(1, slots=3000)
    job = lab.submit(3000, "once")
    assert len(lab.leases(1)) == 3000
    later = lab.restart()
    later.advance(16.0)
    rows = later.recorded(OutcomeRecord)
    assert [len(row.outcome.indexes) for row in rows] == [BATCH_TASKS, BATCH_TASKS, 3000 - 2 * BATCH_TASKS]
    assert counts(later, job) == {"failed": 3000}
