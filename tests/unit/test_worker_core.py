"""The worker's core: leases to slots, reports until acknowledged, recall, stop, reconnection, hand-back."""

from collections.abc import Iterator
from typing import Any

import pytest

from districomp import wire
from districomp.messages import (
    BATCH_BYTES,
    BATCH_TASKS,
    Ack,
    Ask,
    Assign,
    DataAt,
    Define,
    Has,
    Heartbeat,
    Inventory,
    JobSpec,
    Message,
    Recall,
    Reports,
    Resend,
    Returned,
    Started,
    Stop,
    Submit,
    Welcome,
)
from dworker.core import HAND_BACK_S, HELD_MAX, LOOKS_MAX, STARTED_S
from dworker.events import (
    AttemptsEnded,
    Connected,
    Discard,
    Disconnected,
    Exit,
    Look,
    Looked,
    Reset,
    Shutdown,
    StartAttempts,
    StopAttempts,
    Upload,
    Uploaded,
    UseData,
)
from dworker.gather import GATHER_S, SLACK_S
from dworker.hold import PIPELINE_MAX
from tests.unit.workerlab import BLOB, LEASE_S, OFFSET_S, Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.core.check()


@pytest.fixture
def joined(lab: Lab) -> Lab:
    lab.connect()
    lab.define()
    return lab


def leases(starts: list[StartAttempts]) -> list[int]:
    return [lease for start in starts for lease in start.leases]


def test_a_new_worker_says_that_it_holds_nothing(lab: Lab) -> None:
    lab.connect()
    assert lab.sent == [Inventory(0, [], [], [], [], last=True)]
    assert lab.effects == [UseData("http://127.0.0.1:1")]


def test_leases_start_in_their_order_as_slots_are_free(joined: Lab) -> None:
    joined.hear(Assign(1, 50, [0, 1, 2, 3], [1, 2, 1, 1], [b"a", b"b", b"c", b"d"]))
    first, second = joined.starts
    assert (first.leases, first.indexes, first.attempts, first.items) == ([50], [0], [1], [b"a"])
    assert (second.slot, second.leases, second.attempts, second.items) == (1, [51], [2], [b"b"])
    assert (joined.core.running, joined.core.queued) == (2, 2)
    joined.end(second, exit_codes=[0], results=[b"out"])
    assert [(start.slot, start.leases) for start in joined.starts] == [(1, [52])]
    assert joined.sent == [], "more work waits here: reports wait for company"
    assert joined.core.deadline() == pytest.approx(100.0 + GATHER_S + SLACK_S)
    joined.wait(GATHER_S)
    (reports,) = joined.sent
    assert (reports.serial, reports.job, reports.leases, reports.indexes, reports.attempts) == (1000, 1, [51], [1], [2])
    assert (reports.reasons, reports.exit_codes, reports.results) == ([], [0], [b"out"])
    assert reports.ended == reports.started == [100.0 + OFFSET_S]


def test_items_of_numbers_are_counted_here(lab: Lab) -> None:
    lab.connect()
    lab.define(numbers=(10, -3))
    lab.hear(Assign(1, 1, [0, 4]))
    assert [start.items for start in lab.starts] == [[b"10"], [b"-2"]]


def test_a_job_without_input_has_no_item(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0]))
    assert joined.starts[0].items == []


def test_reports_of_one_tick_are_grouped_by_job(joined: Lab) -> None:
    joined.define(2)
    joined.hear(Assign(1, 1, [0]), Assign(2, 2, [0]))
    one, two = joined.starts
    joined.feed(
        AttemptsEnded(one.slot, one.leases, [101.0], ["exit"], [3], stderr=[b"why"]),
        AttemptsEnded(two.slot, two.leases, [101.0]),
    )
    assert [(reports.serial, reports.job) for reports in joined.sent] == [(1000, 1), (1001, 2)]
    assert (joined.sent[0].reasons, joined.sent[0].exit_codes, joined.sent[0].stderr) == (["exit"], [3], [b"why"])
    assert joined.sent[1].reasons == []


def test_batches_are_cut_by_bytes_and_by_count() -> None:
    lab = Lab(slots=8)
    lab.connect()
    lab.define()
    lab.hear(Assign(1, 1, list(range(8))))
    lab.feed(
        *(AttemptsEnded(start.slot, start.leases, [lab.now], results=[bytes(60_000)]) for start in list(lab.starts))
    )
    assert [len(reports.leases) for reports in lab.sent] == [4, 4]
    assert all(len(wire.encode(reports)) < BATCH_BYTES + 65_536 for reports in lab.sent)
    count = BATCH_TASKS + 76
    lab.define(2, isolation=["sandbox"])
    lab.hear(Assign(2, 100, list(range(count))))
    assert [len(reports.leases) for reports in lab.sent] == [BATCH_TASKS, 76]
    assert [lease for reports in lab.sent for lease in reports.leases] == list(range(100, 100 + count))


def test_a_report_is_kept_until_its_acknowledgement(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0]))
    joined.end(joined.starts[0])
    (reports,) = joined.sent
    joined.hear(Resend())
    assert joined.sent == [reports]
    joined.hear(Ack([999, reports.serial]))
    joined.hear(Resend())
    assert joined.sent == []
    assert joined.core.unacknowledged == 0


def test_after_a_reconnection_it_says_what_it_holds_and_reports_again(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2, 3]))
    first, _ = joined.starts
    joined.end(first)
    joined.wait(GATHER_S)
    (reports,) = joined.sent
    joined.feed(Disconnected())
    joined.connect()
    again, held, last = joined.sent
    assert held == Inventory(1, [4, 3, 2], [3, 2, 1], [1, 1, 1], [None, 100.0 + OFFSET_S, 100.0 + OFFSET_S], last=False)
    assert last == Inventory(0, [], [], [], [], last=True)
    assert again == reports


def test_tasks_run_and_start_while_the_coordinator_is_away(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2]))
    first, second = joined.starts
    joined.feed(Disconnected())
    joined.end(first, 1.0)
    assert leases(joined.starts) == [3]
    assert joined.sent == []
    joined.wait(1000)
    joined.feed(Connected(Welcome(1, "c1", "lab", 2, LEASE_S, "", 5000.0), joined.now), _ended(second, joined.now))
    assert isinstance(joined.sent[0], Reports), "what it reported before comes first"
    inventory = [message for message in joined.sent if isinstance(message, Inventory)]
    assert [message.leases for message in inventory] == [[3, 2], []]
    assert [message.leases for message in joined.sent if isinstance(message, Reports)] == [[1], [2]]
    assert [message.ended for message in joined.sent if isinstance(message, Reports)][1] == [5000.0]


def _ended(start: StartAttempts, now: float, **columns: Any) -> AttemptsEnded:
    return AttemptsEnded(start.slot, start.leases, [now] * len(start.leases), **columns)


def test_what_ended_in_the_batch_of_the_reconnection_is_reported_not_held(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0]))
    (start,) = joined.starts
    joined.feed(Disconnected())
    joined.feed(_ended(start, joined.now), Connected(Welcome(1, "c1", "lab", 1, LEASE_S, "", 0.0), joined.now))
    assert [type(message) for message in joined.sent] == [Reports, Inventory]


def test_another_cluster_hears_nothing_of_the_first(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2]))
    first, second = joined.starts
    joined.end(first)
    joined.feed(Disconnected())
    joined.connect("c2")
    assert joined.sent == [Inventory(0, [], [], [], [], last=True)]
    stops = [effect for effect in joined.effects if isinstance(effect, StopAttempts)]
    assert sorted(lease for stop in stops for lease in stop.leases) == [2, 3]
    joined.define()
    joined.hear(Assign(1, 2, [0]))
    assert joined.starts == [], "both slots are still busy with what is being stopped"
    joined.feed(_ended(second, joined.now, reasons=["worker_stopped"]))
    assert leases(joined.starts) == [2]
    assert joined.sent == []


def test_a_recall_gives_back_what_has_not_started(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2, 3, 4]), Assign(1, 100, [9]))
    joined.hear(Recall([1, 5, 4, 77]))
    assert joined.sent == [Returned([4, 5])]
    joined.hear(Recall([4]))
    assert joined.sent == [Returned([])]
    joined.feed(Disconnected())
    joined.connect()
    assert sorted(joined.sent[0].leases) == [1, 2, 3, 100]


def test_recalled_leases_do_not_start(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2, 3]))
    one, two = joined.starts
    joined.hear(Recall([3]))
    joined.feed(_ended(one, joined.now), _ended(two, joined.now))
    assert leases(joined.starts) == [4]


def test_a_stop_ends_what_runs_and_cancels_what_waits(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2]))
    first, _ = joined.starts
    joined.hear(Stop([1, 3]))
    assert joined.effects == [StopAttempts(first.slot, [1], "cancelled")]
    (reports,) = joined.sent
    assert (reports.leases, reports.reasons, reports.started) == ([3], ["cancelled"], [])
    joined.hear(Assign(1, 10, [5]))
    assert joined.starts == [], "the slot is busy until the attempt has ended"
    joined.end(first, reasons=["cancelled"], signals=[15])
    assert joined.sent[0].reasons == ["cancelled"]
    assert leases(joined.starts) == [10]


def test_only_attempts_that_last_are_announced(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1]))
    first, _ = joined.starts
    joined.end(first, 0.01)
    assert joined.core.deadline() == pytest.approx(100.0 + STARTED_S)
    joined.wait(STARTED_S)
    assert joined.sent == [Started([2], [100.0 + OFFSET_S])]
    joined.wait(1)
    assert joined.sent == []


def test_heartbeats_are_sent_and_silence_is_noticed(lab: Lab) -> None:
    assert lab.core.deadline() is None
    lab.connect()
    assert lab.core.deadline() == pytest.approx(100 + LEASE_S / 3)
    for _ in range(2):
        lab.wait(LEASE_S / 3)
        assert lab.sent == [Heartbeat()]
    lab.hear(Heartbeat())
    lab.wait(LEASE_S - 0.1)
    assert lab.effects == []
    lab.wait(0.2)
    assert [type(effect) for effect in lab.effects] == [Reset]
    lab.hear(DataAt("late"))
    lab.wait(LEASE_S)
    assert (lab.sent, lab.effects) == ([], []), "asked once, and nothing more until the link says that it is gone"
    assert lab.core.deadline() is None


def test_a_large_result_is_uploaded_before_its_report(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2]))
    first, _ = joined.starts
    joined.end(first, results=[BLOB])
    assert joined.sent == []
    assert Upload(1, BLOB) in joined.effects
    assert leases(joined.starts) == [3], "its slot is free meanwhile"
    joined.feed(Disconnected())
    joined.connect()
    assert joined.sent[0].leases == [3, 2, 1], "held until it is reported"
    assert joined.sent[0].started[-1] == 100.0 + OFFSET_S
    joined.feed(Uploaded(1))
    (reports,) = joined.sent
    assert reports.results == [BLOB]
    assert joined.effects == []
    joined.hear(Ack([reports.serial]))
    assert joined.effects == [Discard([1])]


def test_a_stop_gives_an_upload_up(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0]))
    joined.end(joined.starts[0], results=[BLOB], exit_codes=[0])
    joined.hear(Stop([1]))
    assert joined.effects == [Discard([1])]
    assert (joined.sent[0].reasons, joined.sent[0].results) == (["cancelled"], [])
    joined.feed(Uploaded(1))
    assert joined.sent == []


def test_uploads_that_pile_up_hold_new_starts_back() -> None:
    lab = Lab(slots=1)
    lab.connect()
    lab.define()
    lab.hear(Assign(1, 1, list(range(6))))
    for _ in range(4):
        (start,) = lab.starts
        lab.end(start, results=[BLOB])
    assert lab.starts == []
    lab.feed(Uploaded(1))
    assert leases(lab.starts) == [5]


def test_what_cannot_run_here_is_refused_with_a_sentence(lab: Lab) -> None:
    lab.connect()
    lab.define(isolation=["rlimit", "sandbox"])
    lab.hear(Assign(1, 1, [0, 1]))
    (reports,) = lab.sent
    assert (reports.reasons, reports.started) == (["not_started"] * 2, [])
    assert b"isolation 'sandbox'; this worker has none, rlimit" in reports.stderr[0]


def test_programs_are_looked_for_when_asked_after(lab: Lab) -> None:
    lab.connect()
    lab.hear(Ask(["sh", "none"]))
    assert lab.effects == [Look(["sh", "none"])]
    lab.feed(Looked(["sh", "none"], ["sh"]))
    assert lab.sent == [Has(["sh", "none"], ["sh"])]
    lab.feed(Disconnected())
    lab.feed(Looked([], []))
    assert lab.sent == []


def test_more_questions_than_anybody_has_end_the_connection(lab: Lab) -> None:
    lab.connect()
    half = [str(number) for number in range(LOOKS_MAX // 2)]
    for _ in range(2):
        lab.hear(Ask(half))
    lab.feed(Looked(half, []))
    lab.hear(Ask(half))
    assert lab.effects == [Look(half)]
    lab.hear(Ask(["one more"]))
    assert [effect.code for effect in lab.effects if isinstance(effect, Reset)] == ["protocol"]


def test_the_matrix_goes_to_the_runner(lab: Lab) -> None:
    lab.connect()
    lab.define(matrix=[("x", [1, 2])])
    lab.hear(Assign(1, 1, [0, 1]))
    assert [(start.matrix, start.indexes, start.items) for start in lab.starts] == [
        ([("x", [1, 2])], [0], []),
        ([("x", [1, 2])], [1], []),
    ]


@pytest.mark.parametrize(
    ("definition", "most"),
    [
        ({"runner": "python"}, 2),
        ({"runner": "python", "matrix": [("x", [1, 2])]}, 2),
        ({"runner": "stream", "argv": ["serve", "{x}"]}, 2),
        ({"runner": "stream", "argv": ["serve", "{x}"], "matrix": [("y", [1, 2])]}, 2),
        ({"runner": "stream", "argv": ["serve", "-{x}"], "matrix": [("x", [1, 2])]}, 1),
        ({"runner": "stream", "argv": ["serve", "{"], "matrix": [("x", [1, 2])]}, 1),
        ({"runner": "command"}, 1),
    ],
)
def test_where_one_process_takes_several_tasks(definition: Any, most: int) -> None:
    lab = Lab(slots=1)
    lab.connect()
    lab.define(**definition)
    lab.hear(Assign(1, 1, list(range(4))))
    (start,) = lab.starts
    assert len(start.leases) == 1
    lab.end(start, each_s=0.0001)
    assert [len(start.leases) for start in lab.starts] == [most]


def test_a_definition_of_a_later_version_is_refused_with_a_sentence(lab: Lab) -> None:
    lab.connect()
    lab.hear(Define("x", b"\x81\xa3new\x01"), JobSpec(1, "x", {}), Assign(1, 1, [0]))
    assert lab.sent[0].reasons == ["not_started"]
    assert b"another version" in lab.sent[0].stderr[0]


@pytest.mark.parametrize(
    "message",
    [
        Assign(2, 1, [0]),
        Assign(1, 1, [0], attempts=[1, 2]),
        Assign(1, 1, [0], items=[b"", b""]),
        Assign(1, 1, [0] * (HELD_MAX + 1)),
        JobSpec(9, "unknown", {}),
        Submit(1, "", "d", {}),
    ],
)
def test_nonsense_ends_the_connection(joined: Lab, message: Message) -> None:
    joined.hear(message)
    (reset,) = joined.effects
    assert isinstance(reset, Reset)
    assert reset.code == "protocol"
    joined.hear(Assign(1, 5, [0]))
    assert joined.starts == []


def _run_stream(lab: Lab, each_s: float, rounds: int) -> int:
    """Tasks of a stream job that take so long each; the most that one slot had in hand."""
    lab.connect()
    lab.define(runner="stream")
    lab.hear(Assign(1, 1, list(range(10_000))))
    hands: dict[int, list[StartAttempts]] = {0: [], 1: []}
    most = 0
    for _ in range(rounds):
        for start in lab.starts:
            hands[start.slot].append(start)
        most = max(most, *(sum(len(start.leases) for start in hand) for hand in hands.values()))
        slot = max(hands, key=lambda number: len(hands[number]))
        if not hands[slot]:
            break
        lab.end(hands[slot].pop(0), each_s)
    return most


def test_a_stream_slot_has_one_long_task_in_hand(lab: Lab) -> None:
    assert _run_stream(lab, 0.5, 20) == 1


def test_a_stream_slot_has_hundreds_of_short_tasks_in_hand(lab: Lab) -> None:
    assert 200 < _run_stream(lab, 1e-6, 60) <= PIPELINE_MAX


def test_few_stream_tasks_are_spread_over_the_slots(lab: Lab) -> None:
    _run_stream(lab, 1e-6, 60)
    lab.hear(Recall(list(range(1, 10_001))))
    lab.feed(*(_ended_all(lab)))
    lab.hear(Assign(1, 20_000, list(range(20))))
    assert [len(start.leases) for start in lab.starts] == [10, 5], "half of what is left, each time"


def _ended_all(lab: Lab) -> list[AttemptsEnded]:
    inventory = lab.core._slots
    return [AttemptsEnded(slot.number, list(slot.hand), [lab.now] * len(slot.hand)) for slot in inventory if slot.hand]


def test_shutdown_hands_everything_back_and_waits_for_the_acknowledgement(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0, 1, 2]))
    first, second = joined.starts
    joined.feed(Shutdown())
    assert joined.sent == [Returned([3])]
    assert joined.effects == [StopAttempts(0, [1], "worker_stopped"), StopAttempts(1, [2], "worker_stopped")]
    joined.hear(Assign(1, 9, [7]))
    assert (joined.sent, joined.starts) == ([Returned([9])], [])
    joined.feed(_ended(first, joined.now, reasons=["worker_stopped"]))
    joined.feed(_ended(second, joined.now, reasons=["worker_stopped"]))
    assert joined.effects == []
    joined.hear(Ack([1000, 1001]))
    assert joined.effects == [Exit()]
    joined.feed()
    assert joined.effects == []


def test_shutdown_does_not_wait_for_ever(joined: Lab) -> None:
    joined.hear(Assign(1, 1, [0]))
    (start,) = joined.starts
    joined.feed(Disconnected(), _ended(start, joined.now, results=[BLOB]), Shutdown())
    assert joined.core.deadline() == joined.now + HAND_BACK_S
    joined.wait(HAND_BACK_S)
    assert joined.effects == [Discard([1])]
    joined.wait(HAND_BACK_S)
    assert joined.effects == [Exit()]
    assert joined.core.deadline() is None


def test_an_idle_worker_exits_at_once(lab: Lab) -> None:
    lab.feed(Shutdown())
    assert lab.effects == [Exit()]


def test_a_worker_that_stops_says_that_it_takes_no_more_before_it_reports(joined: Lab) -> None:
    """Else the task that it hands back would be given to it again, and be lost with it."""
    joined.hear(Assign(1, 1, [0]))
    (start,) = joined.starts
    joined.feed(Shutdown())
    assert joined.sent == [Returned([])]
    joined.feed(_ended(start, joined.now, reasons=["worker_stopped"]))
    assert [type(message) for message in joined.sent] == [Reports]
