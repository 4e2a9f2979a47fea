"""Slots in which short processes follow one another: how many are in hand, and what becomes of those that come back."""

from collections.abc import Iterator
from typing import Any

import pytest

from districomp.messages import Assign, Inventory, Recall, Reports, Returned, Stop
from dworker.events import AttemptsEnded, Disconnected, Shutdown, StartAttempts, StopAttempts, TakenBack
from dworker.hold import AHEAD_MAX, AHEAD_S
from tests.unit.workerlab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab(slots=1, can_queue=True)
    made.connect()
    yield made
    made.core.check()


def quicken(lab: Lab, each_s: float = AHEAD_S / AHEAD_MAX / 2, **definition: Any) -> list[int]:
    """A job of 100 short tasks, so far done that the slot has as many in hand as it may; these."""
    lab.define(**definition)
    lab.hear(Assign(1, 1000, list(range(100))))
    hand: list[int] = []
    most = 0
    for _ in range(30):
        for start in lab.starts:
            hand += start.leases
        if len(hand) > 1 and len(hand) < most:
            break
        most = max(most, len(hand))
        done = hand.pop(0)
        lab.now += each_s
        lab.feed(AttemptsEnded(0, [done], [lab.now], started=[lab.now - each_s]))
    for start in lab.starts:
        hand += start.leases
    return hand


def leases(lab: Lab) -> list[int]:
    return [lease for start in lab.starts for lease in start.leases]


def test_short_ones_are_taken_ahead(lab: Lab) -> None:
    hand = quicken(lab)
    assert AHEAD_MAX // 2 <= len(hand) <= AHEAD_MAX
    assert hand == sorted(hand)
    (slot,) = lab.core._slots
    assert list(slot.hand) == hand


@pytest.mark.parametrize(
    "definition", [{"rerun": "never"}, {"isolation": ["cgroup"]}, {"isolation": ["sandbox"]}], ids=str
)
def test_some_never_are(definition: dict[str, Any]) -> None:
    from districomp.taskdef import Definition
    from dworker.hold import may_follow

    assert may_follow(Definition("d", "digest", "", "command", argv=["true"]))
    assert not may_follow(Definition("d", "digest", "", "command", **{"argv": ["true"]} | definition))
    assert not may_follow(Definition("d", "digest", "", "stream", argv=["cat"]))
    assert not may_follow(None)


def test_long_ones_are_not(lab: Lab) -> None:
    assert len(quicken(lab, each_s=AHEAD_S)) == 1


def test_nor_where_nothing_queues() -> None:
    lab = Lab(slots=1)
    lab.connect()
    assert len(quicken(lab)) == 1


def test_what_comes_back_waits_again_before_all_others_and_can_be_recalled(lab: Lab) -> None:
    head, *ahead = quicken(lab)
    queued = lab.core.queued
    lab.feed(TakenBack(0, ahead, []))
    assert lab.starts == []
    assert lab.core.queued == queued + len(ahead)
    first, *rest = ahead
    lab.hear(Recall(rest))
    (returned,) = [message for message in lab.sent if isinstance(message, Returned)]
    assert sorted(returned.leases) == sorted(rest)
    lab.feed(AttemptsEnded(0, [head], [lab.now], started=[lab.now - 1]))
    assert leases(lab) == [first], "one at a time again"


def test_what_comes_back_in_pieces_is_all_there(lab: Lab) -> None:
    head, *ahead = quicken(lab)
    for lease in (*ahead[::2], *ahead[1::2]):
        lab.feed(TakenBack(0, [lease], []))
    started = []
    lab.feed(AttemptsEnded(0, [head], [lab.now], started=[lab.now - 1]))
    for _ in ahead:
        started += leases(lab)
        lab.end(lab.starts[0], each_s=1.0)
    assert sorted(started) == ahead


def test_what_was_stopped_does_not_wait_again(lab: Lab) -> None:
    _, one, *others = quicken(lab)
    lab.hear(Stop([one]))
    assert lab.effects == [StopAttempts(0, [one], "cancelled")]
    lab.feed(TakenBack(0, [one], []))
    for _ in range(20):
        lab.wait(0.01)
        if lab.sent:
            break
    reports = [message for message in lab.sent if isinstance(message, Reports)]
    assert (one, "cancelled") in [
        row for message in reports for row in zip(message.leases, message.reasons, strict=True)
    ]
    lab.feed(TakenBack(0, others, []))
    lab.hear(Recall([one]))
    assert lab.sent == [Returned([])]


def test_at_a_stop_they_are_handed_back(lab: Lab) -> None:
    head, *ahead = quicken(lab)
    lab.feed(Shutdown())
    assert StopAttempts(0, [head, *ahead], "worker_stopped") in lab.effects
    lab.feed(TakenBack(0, ahead, []), AttemptsEnded(0, [head], [lab.now], ["worker_stopped"]))
    rows = [message for message in lab.sent if isinstance(message, Reports)]
    assert sorted(lease for message in rows for lease in message.leases)[-len(ahead) :] == ahead
    assert lab.core.queued == 0


def test_of_another_cluster_nothing_comes_back(lab: Lab) -> None:
    head, *ahead = quicken(lab)
    lab.feed(Disconnected())
    lab.connect("c2")
    lab.feed(TakenBack(0, ahead, []))
    assert (lab.core.queued, lab.sent) == (0, [])
    lab.feed(AttemptsEnded(0, [head], [lab.now]))
    assert (lab.core.running, lab.sent) == (0, [])


def test_after_a_reconnection_they_are_held_and_not_begun(lab: Lab) -> None:
    head, *ahead = quicken(lab)
    lab.feed(Disconnected())
    lab.connect()
    held = [message for message in lab.sent if isinstance(message, Inventory)]
    started = {lease: time for one in held for lease, time in zip(one.leases, one.started, strict=True)}
    assert started[head] is not None
    assert all(started[lease] is None for lease in ahead)


def test_starts_of_several_name_them_in_their_order(lab: Lab) -> None:
    lab.define()
    lab.hear(Assign(1, 1000, list(range(100))))
    starts: list[StartAttempts] = [*lab.starts]
    for lease in range(1000, 1030):
        lab.now += 1e-4
        lab.feed(AttemptsEnded(0, [lease], [lab.now], started=[lab.now - 1e-4]))
        starts += lab.starts
    assert max(len(start.leases) for start in starts) > 1
    named = [lease for start in starts for lease in start.leases]
    assert named == list(range(1000, 1000 + len(named)))
