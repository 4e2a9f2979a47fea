"""The coordinator's core: leases, reports, retries, loss, restart, cancel. No I/O, no sleep."""

import itertools

import pytest

from dcoord.core.events import Degraded, SpaceLeft
from dcoord.core.records import DropRecord, FrontierRecord, JobEndRecord, JobRecord, OutcomeRecord, PayloadRecord
from dcoord.core.submit import DRAFTS_MAX
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Ack,
    Assign,
    Define,
    Heartbeat,
    HelloWorker,
    Inventory,
    Items,
    JobSpec,
    Recall,
    Refused,
    Reports,
    Returned,
    Started,
    Stop,
    Submit,
    Welcome,
)
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Machine, lease_epoch
from tests.unit.corelab import PLAIN, Lab, counts


def test_a_job_runs_to_its_end() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(3)
    assert [type(m) for _, m in lab.sent if isinstance(m, Define | JobSpec | Assign)] == [Define, JobSpec, Assign]
    held = lab.leases(1)
    assert [index for _, _, index in held] == [0, 1]
    lab.report(1, held)
    assert lab.take(Ack, 1)[0].serials == [1]
    lab.report(1, lab.leases(1))
    assert counts(lab, job) == {"done": 3}
    assert lab.core.jobs[job].state == "done"
    assert [record.state for record in lab.recorded(JobEndRecord)] == ["done"]


def test_tokens_carry_the_epoch_and_are_never_reused() -> None:
    lab = Lab()
    lab.join(1, slots=4)
    lab.submit(4)
    first = [token for token, _, _ in lab.leases(1)]
    assert {lease_epoch(token) for token in first} == {1}
    later = lab.restart()
    later.join(1, slots=4)
    assert all(lease_epoch(token) == 2 for token, _, _ in later.leases(1))


def test_the_frontier_is_recorded_in_the_batch_that_leases_beyond_it() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    lab.submit(5000)
    (frontier,) = lab.recorded(FrontierRecord)
    assert max(index for _, _, index in lab.leases(1)) < frontier.frontier < 5000


def test_a_definition_that_runs_once_has_an_exact_frontier_and_no_prefetch() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    lab.submit(50, "once")
    assert lab.recorded(FrontierRecord)[-1].frontier == 2
    lab.report(1, lab.leases(1), started=[lab.now] * 2)
    assert len(lab.leases(1)) == 2


def test_short_tasks_are_prefetched_and_long_ones_are_not() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    lab.submit(1000)
    lab.report(1, lab.leases(1), started=[lab.now - 0.001])
    assert 50 < len(lab.leases(1)) <= 101
    lab = Lab()
    lab.join(1, slots=1)
    lab.submit(1000)
    lab.report(1, lab.leases(1), started=[lab.now - 10.0])
    assert len(lab.leases(1)) == 1


def test_the_last_tasks_are_shared_out() -> None:
    lab = Lab()
    lab.join(1, slots=8)
    lab.join(2, slots=8)
    lab.submit(8)
    assert len(lab.leases(1)) == len(lab.leases(2)) == 4


def test_jobs_take_turns() -> None:
    lab = Lab()
    big = lab.submit(10_000)
    small = lab.submit(2)
    lab.join(1, slots=1)
    order: list[int] = []
    for _ in range(4):
        held = lab.leases(1)
        order += [job for _, job, _ in held]
        lab.report(1, held, started=[lab.now - 5.0])
    assert order == [big, small, big, small]


def test_a_failed_task_is_retried_after_its_backoff_and_then_fails() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    for attempt, backoff_s in enumerate((1.0, 2.0, 4.0), 1):
        (held,) = lab.leases(1)
        lab.report(1, [held], "exit", exit_codes=[1], attempts=[attempt])
        assert counts(lab, job) == {"queued": 1}
        lab.advance(backoff_s - 0.01)
        assert not lab.leases(1)
        lab.receive(1, Heartbeat())
        lab.advance(0.02)
        (assign,) = [m for _, m in lab.sent if isinstance(m, Assign)]
        assert assign.attempts == [attempt + 1]
    lab.report(1, lab.leases(1), "exit", exit_codes=[1], attempts=[4])
    assert counts(lab, job) == {"failed": 1}
    assert [o.outcome.states for o in lab.recorded(OutcomeRecord)] == [[QUEUED]] * 3 + [[FAILED]]


def test_an_exit_code_that_is_a_verdict_is_not_retried() -> None:
    from tests.unit import corelab

    verdict = corelab.definition("verdict", retries=corelab.PLAIN.retries.__class__(never_on=[2]))
    lab = Lab()
    lab.core.definitions["verdict"] = verdict
    lab.join(1)
    job = lab.submit(1, "verdict")
    lab.report(1, lab.leases(1), "exit", exit_codes=[2])
    assert counts(lab, job) == {"failed": 1}


def test_a_silent_worker_is_lost_and_its_task_goes_elsewhere() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    (held,) = lab.leases(1)
    lab.receive(1, Started([held[0]], [lab.now]))
    lab.gone(1)
    lab.join(2)
    lab.advance(14.0)
    lab.receive(2, Heartbeat())
    assert not lab.leases(2)
    lab.advance(2.0)
    (again,) = lab.leases(2)
    assert again[0] != held[0]
    assert lab.core.fleet.lost["w1"].state == "lost"
    lost = lab.recorded(OutcomeRecord)[0].outcome
    assert (lost.worker, lost.reasons, lost.states) == ("w1", ["worker_lost"], [QUEUED])
    lab.report(2, [again])
    assert counts(lab, job) == {"done": 1}


def test_three_lost_workers_are_the_crash_limit() -> None:
    lab = Lab()
    job = lab.submit(1)
    for peer in (1, 2, 3):
        lab.join(peer)
        (held,) = lab.leases(peer)
        lab.receive(peer, Started([held[0]], [lab.now]))
        lab.gone(peer)
        lab.advance(16.0)
    assert counts(lab, job) == {"failed": 1}
    assert lab.recorded(OutcomeRecord)[-1].outcome.reasons == ["crash_limit"]


def test_a_lost_worker_counts_an_attempt_only_for_what_it_can_have_begun() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    lab.submit(1000)
    lab.report(1, lab.leases(1), started=[lab.now - 0.001])
    assert len(lab.leases(1)) > 10
    lab.gone(1)
    lab.advance(16.0)
    lost = [o.outcome for o in lab.recorded(OutcomeRecord) if "worker_lost" in o.outcome.reasons]
    assert [len(o.indexes) for o in lost] == [1]


def test_a_late_report_of_a_lost_lease_is_refused_but_acknowledged() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    held = lab.leases(1)
    lab.gone(1)
    lab.advance(16.0)
    lab.join(2)
    again = lab.leases(2)
    lab.join(3, worker="w1", inventory=False)
    lab.take(Ack)
    lab.report(3, held)
    assert lab.take(Ack, 3)
    assert counts(lab, job) == {"running": 1}
    lab.report(2, again)
    assert [o.outcome.worker for o in lab.recorded(OutcomeRecord) if not o.outcome.states] == ["w2"]


def test_a_duplicate_report_is_recorded_once() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(2)
    held = lab.leases(1)
    lab.report(1, held)
    lab.report(1, held)
    assert counts(lab, job) == {"done": 2}
    assert len(lab.recorded(OutcomeRecord)) == 1


def test_reconnecting_with_everything_keeps_everything() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(2)
    held = lab.leases(1)
    lab.gone(1)
    lab.join(2, worker="w1", slots=2, inventory=False)
    tokens, indexes = [t for t, _, _ in held], [i for _, _, i in held]
    lab.receive(2, Inventory(job, tokens, indexes, [1, 1], [lab.now, None], True))
    assert not lab.leases(2) and not lab.take(Stop)
    lab.report(2, held)
    assert counts(lab, job) == {"done": 2}


def test_what_a_reconnecting_worker_does_not_have_is_leased_again_without_an_attempt() -> None:
    lab = Lab()
    lab.join(1, slots=2)
    job = lab.submit(2)
    lab.leases(1)
    lab.gone(1)
    lab.join(2, worker="w1", slots=2)
    assert len(lab.leases(2)) == 2
    assert not lab.recorded(OutcomeRecord)
    assert counts(lab, job) == {"running": 2}


def test_a_restarted_worker_has_lost_what_it_ran() -> None:
    lab = Lab()
    lab.join(1)
    lab.submit(1)
    lab.leases(1)
    lab.join(2, worker="w1", process=2)
    assert lab.closed[0].code == "replaced"
    assert lab.recorded(OutcomeRecord)[0].outcome.reasons == ["worker_lost"]
    (assign,) = [m for _, m in lab.sent if isinstance(m, Assign)]
    assert assign.attempts == [2]


def test_a_stopped_worker_counts_no_retry() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1)
    for _ in range(10):
        lab.report(1, lab.leases(1), "worker_stopped")
    assert counts(lab, job) == {"running": 1}


def test_a_task_that_runs_at_most_once_fails_when_its_worker_is_lost() -> None:
    lab = Lab()
    lab.join(1)
    job = lab.submit(1, "once")
    lab.gone(1)
    lab.advance(16.0)
    assert counts(lab, job) == {"failed": 1}
    assert lab.recorded(OutcomeRecord)[0].outcome.reasons == ["outcome_unknown"]


# ---- submissions ----


def test_items_go_with_the_leases_and_are_read_ahead() -> None:
    lab = Lab()
    lab.receive(900, Submit(1, "", "work", {}, items=[b"a", b"b"], last=False))
    assert not lab.take(Accepted)
    lab.receive(900, Items(1, [b"c"], last=False))
    lab.receive(900, Items(1, [b"d"], last=True))
    assert lab.take(Accepted)[0].tasks == 4
    assert [(r.first, r.items) for r in lab.recorded(PayloadRecord)] == [(0, [b"a", b"b"]), (2, [b"c"]), (3, [b"d"])]
    lab.join(1, slots=4)
    items = [item for a in lab.take(Assign) for item in a.items]
    assert items == [b"a", b"b", b"c", b"d"]


def test_the_same_request_gives_the_same_job_also_after_a_restart() -> None:
    lab = Lab()
    job = lab.submit(3, request_id="r1")
    assert lab.submit(3, request_id="r1") == job
    assert lab.restart().submit(3, request_id="r1") == job
    assert len(lab.recorded(JobRecord)) == 1


def test_a_connection_has_only_so_many_submissions_under_way_repeated_ones_too() -> None:
    lab = Lab()
    lab.submit(3, request_id="r1")
    for request in range(DRAFTS_MAX):
        lab.receive(900, Submit(request, "r1" if request % 2 else "", "work", {}, last=False))
    assert not lab.take(Refused)
    lab.receive(900, Submit(DRAFTS_MAX, "r1", "work", {}, last=False))
    assert [refused.request for refused in lab.take(Refused)] == [DRAFTS_MAX]
    lab.receive(900, Items(1, [b"a"], last=True))
    lab.receive(900, Submit(DRAFTS_MAX, "r1", "work", {}, last=False))
    assert not lab.take(Refused)


def test_a_submission_whose_client_vanishes_leaves_nothing() -> None:
    lab = Lab()
    lab.receive(900, Submit(1, "", "work", {}, items=[b"a"], last=False))
    lab.gone(900)
    lab.receive(901, Items(1, [b"b"], last=True))
    assert not lab.core.jobs and not lab.core.drafts


def test_a_request_number_is_used_by_one_submission_at_a_time() -> None:
    lab = Lab()
    lab.receive(900, Submit(1, "", "work", {}, items=[b"a"], last=False))
    lab.receive(900, Submit(1, "", "work", {}, items=[b"b"], last=False))
    assert lab.take(Refused)[0].code == "bad_request"
    assert not lab.core.drafts
    assert [record.job for record in lab.recorded(DropRecord)] == [1]


def test_a_connection_has_a_bounded_number_of_submissions_under_way() -> None:
    lab = Lab()
    for request in range(100):
        lab.receive(900, Submit(request, "", "work", {}, items=[b"a"], last=False))
    assert len(lab.core.drafts) == 64
    assert len(lab.take(Refused)) == 36


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("unknown_definition", {"definition": "nothing"}),
        ("bad_params", {"params": {"surplus": 1}}),
        ("bad_params", {"definition": "params", "params": {"size": "many"}}),
        ("empty", {"items": [], "last": True}),
        ("bad_request", {"count": 2}),
        ("bad_request", {"count": 2, "numbers": (0, 1), "max_fails": 0}),
        ("bad_request", {"count": 2, "items": [b"a"]}),
        ("too_large", {"count": 10**12, "numbers": (0, 1)}),
        ("too_large", {"count": 2, "numbers": (1 << 62, 1)}),
    ],
)
def test_bad_submissions_are_refused_with_a_code(code: str, keys: dict[str, object]) -> None:
    lab = Lab()
    fields: dict[str, object] = {"definition": "work", "params": {}} | keys
    lab.receive(900, Submit(3, "", **fields))  # type: ignore[arg-type]
    (refused,) = lab.take(Refused)
    assert (refused.request, refused.code) == (3, code)
    assert not lab.core.jobs


# ---- taking back, space, degraded, hostile peers ----


def test_unstarted_tasks_are_taken_back_for_an_idle_worker() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    job = lab.submit(40)
    lab.report(1, lab.leases(1), started=[lab.now - 0.002])
    held = lab.leases(1)
    lab.receive(1, Started([held[0][0]], [lab.now]))
    # The one that runs turns out to be long: what waits behind it goes to a second machine.
    lab.advance(5.0)
    lab.join(2, slots=1)
    (recall,) = lab.take(Recall, 1)
    assert 0 < len(recall.leases) < len(held)
    lab.receive(1, Returned(recall.leases))
    assert lab.leases(2)
    assert sum(lab.core.jobs[job].counts) == 40
    assert not [o for o in lab.recorded(OutcomeRecord) if o.outcome.states]


def test_what_an_idle_worker_could_run_is_taken_back_while_other_tasks_are_queued() -> None:
    lab = Lab()
    arm = Machine(arch="aarch64")
    lab.join(1, slots=1, machine=arm)
    lab.submit(40)
    lab.report(1, lab.leases(1), started=[lab.now - 0.002])
    held = lab.leases(1)
    lab.submit(100, "arm")
    lab.receive(1, Started([held[0][0]], [lab.now]))
    lab.advance(5.0)
    lab.join(2, slots=1)
    (recall,) = lab.take(Recall, 1)
    assert 0 < len(recall.leases) < len(held)


def test_a_recall_that_brought_nothing_is_repeated_ever_more_rarely() -> None:
    lab = Lab()
    lab.join(1, slots=1)
    lab.submit(40)
    lab.report(1, lab.leases(1), started=[lab.now - 0.002])
    held = lab.leases(1)
    lab.receive(1, Started([held[0][0]], [lab.now]))
    lab.advance(5.0)
    lab.join(2, slots=1)
    asked, end = [], lab.now + 14.0
    while True:
        if lab.take(Recall, 1):
            asked.append(lab.now)
            lab.receive(1, Returned([]))
        due = lab.core.deadline()
        assert due is not None
        if due > end:
            break
        lab.now = max(lab.now, due)
        lab.feed()
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses == sorted(pauses), "nothing else happened, it asked of itself"
    assert pauses[0] < 0.5
    assert 4.0 < pauses[-1] < 6.0


def test_a_slow_machine_holds_what_is_little_work_to_it() -> None:
    lab = Lab()
    for peer in (1, 2):
        lab.join(peer, slots=1)
    lab.submit(10_000)
    for peer, took_s in ((1, 0.001), (2, 0.05)) * 3:
        held = lab.leases(peer)
        lab.report(peer, held, started=[lab.now - took_s] * len(held))
    assert len(lab.core.fleet.by_peer[1].leases) > 50
    assert len(lab.core.fleet.by_peer[2].leases) <= 3


def test_nothing_is_leased_when_the_disk_is_nearly_full() -> None:
    lab = Lab()
    lab.feed(SpaceLeft(1024))
    lab.join(1)
    lab.submit(1)
    assert not lab.leases(1)
    lab.feed(SpaceLeft(1 << 40))
    assert lab.leases(1)


def test_a_degraded_coordinator_refuses_with_the_reason() -> None:
    lab = Lab()
    lab.feed(Degraded("the disk is full"))
    lab.receive(900, Submit(1, "", "work", {}, numbers=(0, 1), count=1))
    assert lab.take(Refused)[0].text == "the disk is full"
    lab.join(1, inventory=False)
    assert lab.closed[0].code == "degraded"
    lab.feed(Degraded(""))
    lab.join(2)
    lab.submit(1)
    assert lab.leases(2)


def test_wrong_version_cluster_and_columns_close_only_that_connection() -> None:
    lab = Lab()
    lab.join(1)
    lab.submit(2)
    lab.receive(2, HelloWorker(PROTOCOL_VERSION + 1, "", "w2", "w2", 1, Machine(), 1))
    lab.receive(3, HelloWorker(PROTOCOL_VERSION, "other", "w3", "w3", 1, Machine(), 1))
    lab.receive(4, HelloWorker(PROTOCOL_VERSION, "", "w4", "w4", 0, Machine(), 1))
    lab.receive(1, Reports(1, 1, [1, 2], [0], ended=[1.0]))
    assert [close.code for close in lab.closed] == ["version", "cluster", "protocol", "protocol"]
    assert lab.core.jobs[1].counts[RUNNING] == 1


def test_a_worker_cannot_report_another_workers_task() -> None:
    lab = Lab()
    lab.join(1)
    lab.join(2)
    job = lab.submit(2)
    first, second = lab.leases(1), lab.leases(2)
    lab.report(2, first)
    assert counts(lab, job) == {"running": 2}
    lab.report(2, second)
    assert counts(lab, job) == {"running": 1, "done": 1}


def test_greeting_gets_a_welcome_and_heartbeats_are_answered() -> None:
    lab = Lab()
    lab.join(1)
    assert lab.take(Welcome, 1)[0].lease_s == 15.0
    lab.receive(1, Heartbeat())
    assert lab.take(Heartbeat, 1)


def test_states_are_only_changed_along_the_table() -> None:
    lab = Lab()
    job = lab.core.jobs[lab.submit(1)]
    with pytest.raises(AssertionError, match="is not running"):
        job.finish([0], DONE)
    job.move(0, CANCELLED)
    with pytest.raises(AssertionError, match="4 -> 1"):
        job.move(0, RUNNING)
    assert PLAIN.digest
