"""The worker's core: what waits behind a task that takes long comes back, and goes elsewhere, or is not wanted any more."""

import msgspec
import pytest

from districomp.messages import Assign, Recall, Reports, Returned, Stop
from dworker.events import AttemptsEnded, Disconnected, Received, Shutdown, StartAttempts, TakeBack, TakenBack
from dworker.gather import GATHER_S
from dworker.hold import TAKE_BACK_S
from tests.unit.workerlab import Lab


def leases(starts: list[StartAttempts]) -> list[int]:
    return [lease for start in starts for lease in start.leases]


def crowded(slots: int = 1) -> tuple[Lab, StartAttempts]:
    """A worker whose first slot has many short attempts in hand, and the last start of that."""
    lab = Lab(slots)
    lab.connect()
    lab.define(1, "stream")
    lab.hear(Assign(1, 1000, list(range(2000))))
    (start, *_) = lab.starts
    while len(start.leases) < 100:
        lab.end(start, 1e-5)
        start = next(one for one in lab.starts if one.slot == start.slot)
    return lab, start


def test_what_waits_behind_a_long_attempt_is_taken_back_once() -> None:
    lab, start = crowded()
    begun = lab.now
    lab.wait(GATHER_S)
    assert lab.core.deadline() == pytest.approx(begun + TAKE_BACK_S, abs=1e-6)
    lab.wait(TAKE_BACK_S - GATHER_S)
    (ask,) = [effect for effect in lab.effects if isinstance(effect, TakeBack)]
    assert (ask.slot, ask.leases) == (start.slot, start.leases[1:])
    lab.wait(TAKE_BACK_S)
    assert not [effect for effect in lab.effects if isinstance(effect, TakeBack)]


def test_what_was_taken_back_is_the_first_to_start_elsewhere_in_its_order() -> None:
    lab, start = crowded()
    lab.wait(TAKE_BACK_S)
    back, waiting = start.leases[10:], lab.core.queued
    lab.feed(TakenBack(start.slot, back, [b""] * len(back)))
    assert lab.starts == [], "the slot is not given back what was taken from it"
    assert lab.core.queued == waiting + len(back)
    lab.hear(Recall([back[5], back[7], start.leases[3], 2999]))
    assert lab.sent[0] == Returned([back[5], back[7], 2999])
    lab.feed(AttemptsEnded(start.slot, start.leases[:10], [lab.now] * 10))
    assert leases(lab.starts) == [back[0]]
    lab.end(lab.starts[0], 1e-5)
    assert leases(lab.starts)[:1] == [back[1]]


def test_an_item_comes_back_with_its_lease() -> None:
    lab = Lab(1)
    lab.connect()
    lab.define(1, "stream")
    lab.hear(Assign(1, 50, list(range(4)), [1, 3, 1, 2], [b"a", b"b", b"c", b"d"]))
    lab.end(lab.starts[0], 1e-5)
    (start,) = lab.starts
    assert start.leases == [51, 52]
    lab.wait(TAKE_BACK_S)
    lab.feed(TakenBack(start.slot, [52], [b"c"]))
    lab.end(msgspec.structs.replace(start, leases=[51]), 1.0)
    (again,) = lab.starts
    assert (again.leases, again.indexes, again.attempts, again.items) == ([52], [2], [1], [b"c"])


def test_what_is_stopped_on_its_way_back_does_not_start() -> None:
    lab, start = crowded()
    lab.wait(TAKE_BACK_S)
    lab.feed(
        Received(Stop(start.leases[5:7]), lab.now),
        TakenBack(start.slot, start.leases[5:], [b""] * len(start.leases[5:])),
    )
    lab.wait(GATHER_S)
    (reports,) = [message for message in lab.sent if isinstance(message, Reports)]
    assert (reports.leases, reports.reasons) == (start.leases[5:7], ["cancelled"] * 2)
    lab.feed(AttemptsEnded(start.slot, start.leases[:5], [lab.now] * 5))
    assert leases(lab.starts) == [start.leases[7]]


def test_what_comes_back_to_a_worker_that_stops_or_has_another_cluster_is_not_kept() -> None:
    lab, start = crowded()
    lab.wait(TAKE_BACK_S)
    lab.feed(Shutdown())
    lab.feed(TakenBack(start.slot, start.leases[1:], [b""] * len(start.leases[1:])))
    assert lab.core.queued == 0
    assert {reason for message in lab.sent for reason in message.reasons} == {"worker_stopped"}
    lab, start = crowded()
    lab.wait(TAKE_BACK_S)
    lab.feed(Disconnected())
    lab.connect("c2")
    lab.feed(AttemptsEnded(start.slot, start.leases[:1], [lab.now], ["worker_stopped"]))
    lab.feed(TakenBack(start.slot, start.leases[1:], [b""] * len(start.leases[1:])))
    assert (lab.core.queued, lab.core.running, lab.sent) == (0, 0, [])


def test_attempts_that_become_longer_are_taken_back_before_one_is_long() -> None:
    lab, start = crowded()
    first = msgspec.structs.replace(start, leases=start.leases[:1])
    lab.end(first, 0.04)
    (ask,) = [effect for effect in lab.effects if isinstance(effect, TakeBack)]
    assert 0 < len(start.leases) - len(ask.leases) < 6
    lab.wait(TAKE_BACK_S)
    (rest,) = [effect for effect in lab.effects if isinstance(effect, TakeBack)]
    assert rest.leases == start.leases[2:], "the one that runs now is long itself"
