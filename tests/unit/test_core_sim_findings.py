"""What the simulator found in the coordinator's core, each as the shortest story that shows it."""

from dcoord.core.core import Core
from dcoord.core.events import Degraded, SpaceLeft
from dcoord.core.records import OutcomeRecord, WorkerRecord
from districomp.messages import PROTOCOL_VERSION, Ack, HelloWorker, Inventory, Returned, Stop
from districomp.model import DONE, FAILED, QUEUED, RUNNING, Machine
from tests.unit.corelab import SETTINGS, Lab, restore


def test_a_core_that_starts_on_a_full_disk_serves_nothing_and_is_sound() -> None:
    lab = Lab()
    lab.submit(3)
    core = Core(SETTINGS, restore(lab.records, 1), lab.now)
    assert core.handle_batch([Degraded("disk full")], lab.now) + core.tick(lab.now) == []
    core.check()


def test_what_may_run_once_does_not_run_again_when_its_worker_comes_back_as_another_process() -> None:
    lab = Lab()
    lab.join(1, process=1)
    job = lab.submit(1, "once")
    assert lab.leases(1)
    later = lab.restart()
    later.join(2, worker="w1", process=2)
    assert later.leases(2) == []
    assert later.core.jobs[job].counts[FAILED] == 1
    assert later.recorded(OutcomeRecord)[-1].outcome.reasons == ["outcome_unknown"]


def test_a_worker_that_is_late_with_its_inventory_is_still_here_after_the_next_restart() -> None:
    lab = Lab()
    lab.join(1)
    later = lab.restart()
    later.advance(14.0)
    later.receive(2, HelloWorker(PROTOCOL_VERSION, "", "w1", "w1", 1, Machine(), 1))
    later.advance(2.0)
    assert later.recorded(WorkerRecord)[-1].present
    assert list(later.restart().core.returning) == ["w1"]


def test_a_failure_that_is_recorded_is_not_counted_again_when_only_its_ack_was_lost() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    held = lab.leases(1)
    lab.report(1, held, "exit", exit_codes=[1])
    later = lab.restart()
    later.join(2, worker="w1", inventory=False)
    later.report(2, held, "exit", exit_codes=[1])
    assert [m.serials for m in later.take(Ack, 2)] == [[later.serial]]
    assert later.core.jobs[job].tries[0].failures == 1


def stopped_for_another() -> tuple[Lab, int, list[tuple[int, int, int]]]:
    """A lease of before a restart, of whose task another worker had a newer one; it is queued, and the old one stopped."""
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    held = lab.leases(1)
    later = lab.restart()
    later.advance(16.0)
    later.join(2)
    assert later.leases(2)
    later.join(3, worker="w1", inventory=False)
    tokens = [token for token, _, _ in held]
    later.receive(3, Inventory(job, tokens, [0], [1], [None], False), Inventory(0, [], [], [], [], True))
    assert [m.leases for m in later.take(Stop, 3)] == [tokens]
    later.feed(SpaceLeft(0))
    later.receive(2, Returned(list(later.core.fleet.by_id["w2"].leases)))
    assert later.core.jobs[job].counts[QUEUED] == 1
    return later, job, held


def test_an_attempt_stopped_for_another_is_no_failure_of_its_task() -> None:
    lab, job, held = stopped_for_another()
    lab.report(3, held, "cancelled")
    assert lab.recorded(OutcomeRecord) == []
    assert lab.core.jobs[job].counts[QUEUED] == 1


def test_nor_if_its_worker_comes_back_before_it_has_ended() -> None:
    lab, job, held = stopped_for_another()
    lab.gone(3)
    lab.join(4, worker="w1", inventory=False)
    lab.prove(4, "w1")
    lab.receive(4, Inventory(job, [held[0][0]], [0], [1], [lab.now], False), Inventory(0, [], [], [], [], True))
    assert lab.core.jobs[job].counts[RUNNING] == 1
    lab.report(4, held, "cancelled")
    assert lab.core.jobs[job].counts[QUEUED] == 1
    assert lab.core.jobs[job].tries[0].failures == 0


def test_a_report_of_another_task_than_was_leased_changes_nothing() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(2)
    first, second = lab.leases(1)
    lab.report(1, [first, (second[0], job, 0)])
    assert [close.code for close in lab.closed] == ["protocol"]
    lab.report(1, [first, second])
    assert lab.core.jobs[job].counts[DONE] == 2


def test_a_report_for_an_ended_job_does_not_take_another_jobs_lease_away() -> None:
    lab = Lab()
    lab.join(1)
    ended = lab.submit(1)
    lab.report(1, lab.leases(1))
    job = lab.submit(1)
    ((token, _, index),) = lab.leases(1)
    lab.report(1, [(token, ended, index)])
    assert list(lab.core.fleet.by_id["w1"].leases) == [token]
    lab.report(1, [(token, job, index)])
    assert lab.core.jobs[job].counts[DONE] == 1


def test_a_worker_that_hands_back_unasked_is_stopping_and_given_nothing_more() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    lab.submit(3)
    held = lab.leases(1)
    lab.receive(1, Returned([held[1][0]]))
    assert lab.leases(1) == []
    lab.report(1, held[:1], "worker_stopped")
    assert lab.leases(1) == []
    lab.gone(1)
    lab.join(2, worker="w1", slots=2, process=2)
    assert [index for _, _, index in lab.leases(2)] == [0, 1]


def test_times_far_apart_do_not_break_the_placement() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(4)
    for _ in range(3):
        lab.report(1, lab.leases(1), ended=[1e11], started=[-1e10])
    assert lab.core.jobs[job].counts[DONE] == 3
    assert len(lab.leases(1)) == 1


def test_an_inventory_that_was_cut_off_does_not_speak_for_the_next_connection() -> None:
    lab = Lab()
    lab.join(1)
    lab.submit(1)
    ((token, job, index),) = lab.leases(1)
    lab.join(2, worker="w1", inventory=False)
    lab.receive(2, Inventory(job, [token], [index], [1], [None], False))
    lab.join(3, worker="w1")
    assert [index for _, _, index in lab.leases(3)] == [0]
    assert token not in lab.core.fleet.by_id["w1"].leases
