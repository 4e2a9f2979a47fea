"""Placement over many workers: what it costs follows the work, and nobody who could help is left out for long."""

import gc

from dcoord.core.place import LEASED_MANY, PASS_MAX, WAVE_S, WAVE_WORKERS
from districomp.messages import BATCH_TASKS, Assign
from tests.unit.corelab import Lab

MICROSECOND = 1e-6


def crowd(lab: Lab, count: int, slots: int = 1) -> range:
    peers = range(1, count + 1)
    for peer in peers:
        lab.join(peer, slots=slots)
    return peers


def given(lab: Lab) -> dict[int, int]:
    """By peer: how many leases it was given since the last look."""
    found: dict[int, int] = {}
    for peer, message in lab.sent:
        if isinstance(message, Assign):
            found[peer] = found.get(peer, 0) + len(message.indexes)
    lab.sent = [(peer, message) for peer, message in lab.sent if not isinstance(message, Assign)]
    return found


def test_unknown_tasks_reach_everybody_in_waves() -> None:
    lab = Lab()
    peers = crowd(lab, 600)
    lab.submit(len(peers))
    reached = 0
    for wave in range(8):
        parts = given(lab)
        wanted = WAVE_WORKERS << max(0, wave - 1)
        assert parts == dict.fromkeys(peers[reached : reached + wanted], 1)
        reached += len(parts)
        lab.advance(WAVE_S)
    assert given(lab) == dict.fromkeys(peers[reached:], 1)


def test_tiny_tasks_are_not_handed_to_everybody_one_by_one() -> None:
    lab = Lab()
    crowd(lab, 500)
    lab.submit(20_000)
    held = lab.leases(1)
    given(lab)
    lab.report(1, held, started=[lab.now - 10 * MICROSECOND])
    lab.advance(WAVE_S)
    parts = given(lab)
    assert sum(parts.values()) == 20_000 - WAVE_WORKERS
    # 0.2 s of work, at 0.1 ms to hand out a part of it: 45 workers.
    assert 30 < len(parts) < 60


def test_a_pass_is_bounded_and_the_next_one_is_due_at_once() -> None:
    lab = Lab()
    crowd(lab, 100)
    job = lab.submit(200_000)
    lab.report(1, lab.leases(1), started=[lab.now - 100 * MICROSECOND])
    first = sum(given(lab).values())
    assert PASS_MAX <= first - WAVE_WORKERS + 1 < PASS_MAX + BATCH_TASKS
    assert lab.core.deadline() == lab.now
    lab.advance(0.0)
    assert sum(given(lab).values()) >= PASS_MAX
    assert lab.core.jobs[job].leasable > 0


def test_leases_do_not_grow_with_the_workers() -> None:
    lab = Lab()
    peers = crowd(lab, 100)
    lab.submit(1_000_000)
    lab.report(1, lab.leases(1), started=[lab.now - 10 * MICROSECOND])
    lab.advance(1.0)
    assert LEASED_MANY < lab.core.leased <= LEASED_MANY + PASS_MAX + BATCH_TASKS + 2 * len(peers)
    assert all(worker.leases for worker in lab.core.fleet.by_id.values()), "everybody has something to do"


def test_who_was_given_something_is_last_in_line() -> None:
    lab = Lab()
    crowd(lab, 4, slots=2)
    for _ in range(4):
        lab.submit(1)
    assert given(lab) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_leases_are_out_of_the_garbage_collectors_sight() -> None:
    """With hundreds of thousands of them it would take a third of the coordinator's time to look at them for cycles."""
    lab = Lab()
    crowd(lab, 1, slots=4)
    lab.submit(4)
    (worker,) = lab.core.fleet.by_id.values()
    assert len(worker.leases) == 4
    assert not any(gc.is_tracked(lease) for lease in worker.leases.values())
