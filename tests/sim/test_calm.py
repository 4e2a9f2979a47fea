"""Where work waits, in virtual time: how much a worker holds, and how long a slot is idle while tasks wait anywhere."""

from collections.abc import Callable

import pytest

from tests.sim.calm import CalmWorld


def world(*slots: int, read_ahead: int = 1) -> CalmWorld:
    made = CalmWorld()
    for count in slots:
        made.join(count, read_ahead=read_ahead)
    made.run_for(0.1)
    return made


@pytest.mark.parametrize(
    ("count", "takes_s", "slots", "runner"),
    [
        (30_000, 1e-5, 1, "stream"),
        (4000, 1e-3, 1, "stream"),
        (4000, 1e-3, 1, "command"),
        (4000, 0.005, 16, "stream"),
        (400, 0.05, 1, "stream"),
        (60, 0.3, 2, "command"),
        (11, 5.0, 1, "stream"),
    ],
)
def test_a_worker_never_waits_and_holds_a_tenth_of_a_second_of_work(
    count: int, takes_s: float, slots: int, runner: str
) -> None:
    calm = world(slots, slots)
    calm.submit(count, lambda _: takes_s, runner=runner)
    took_s = calm.run() - 0.1
    rounds = -(-count // (2 * slots))
    # Of what takes longer than a worker may hold beside it, each next one is asked for when one has ended.
    asks_s = 0.003 if takes_s > 0.1 else 0.0
    assert took_s < rounds * (takes_s + asks_s) + 0.03, (
        "the first lease of a job of which nothing is known costs no more"
    )
    assert calm.idle_s_max <= 0.01
    assert calm.work_s_max <= max(0.1, takes_s / slots) + 1e-6


@pytest.mark.parametrize("takes_s", [1e-5, 1e-3])
def test_what_waits_behind_a_task_that_turns_out_long_goes_elsewhere(takes_s: float) -> None:
    calm = world(2, 2)
    calm.submit(20_000, lambda index: 60.0 if index == 10_000 else takes_s)
    assert calm.run() < 60.5 + 20_000 * takes_s / 3
    assert calm.idle_s_max < 0.1


def test_what_a_program_has_read_itself_stays_with_it() -> None:
    """So that the test before this one shows something; and it is not asked for without end."""
    calm = world(2, 2, read_ahead=200)
    calm.submit(20_000, lambda index: 60.0 if index == 10_000 else 1e-5)
    calm.run()
    assert calm.idle_s_max > 50
    assert 3 < calm.recalls < 60, "the pauses grow"


@pytest.mark.parametrize(
    "takes_s",
    [
        lambda index: 1e-3 if index < 2000 else 1.0,
        lambda index: 1e-4 if index < 4000 else 0.04,
        lambda index: 0.5 if index % 100 == 37 else 1e-3,
    ],
    ids=["long ones last", "a little longer ones last", "now and then a long one"],
)
def test_lengths_that_change_leave_nobody_idle(takes_s: Callable[[int], float]) -> None:
    calm = world(2, 2)
    calm.submit(2040 if takes_s(2000) == 1.0 else 4200, takes_s)
    calm.run()
    assert calm.idle_s_max < 0.15


@pytest.mark.parametrize("takes_s", [1e-3, 0.05])
def test_machines_of_different_speed_hold_what_is_a_tenth_of_a_second_to_them(takes_s: float) -> None:
    calm = CalmWorld()
    for speed in (10.0, 1.0, 0.1):
        calm.join(1, speed=speed)
    calm.run_for(0.1)
    calm.submit(2000, lambda _: takes_s)
    calm.run()
    assert calm.work_s_max <= 0.3, "a job's first tasks are handed out before anybody knows the machine"
    assert calm.idle_s_max < 0.1
    assert calm.ran_on[1] > 5 * calm.ran_on[2] > 25 * calm.ran_on[3]


def test_whoever_joins_late_gets_what_others_hold() -> None:
    calm = world(1)
    calm.submit(300, lambda index: 1e-3 if index < 100 else 1.0)
    calm.run_for(3.0)
    calm.join(4)
    calm.run_for(1.0)
    assert calm.machines[1].idle_slots() == 0
    calm.run()
    assert calm.ran_on[2] > 3 * (calm.ran_on[1] - 110)
    assert calm.idle_s_max < 0.5


def test_a_queue_of_what_the_idle_can_not_run_keeps_nothing_from_them() -> None:
    calm = CalmWorld()
    calm.join(1, labels=("a",))
    calm.join(1)
    calm.run_for(0.1)
    calm.submit(800, lambda index: 1e-3 if index < 700 else 0.5)
    calm.run_for(0.2)
    picky = calm.submit(100_000, lambda _: 0.01, labels=("a",))
    calm.run_for(20.0)
    assert calm.core.active[picky].leasable > 10_000
    assert calm.idle_s_max < 0.2


def test_two_kinds_of_tasks_on_one_worker() -> None:
    calm = world(2, 2)
    calm.submit(20_000, lambda _: 1e-4)
    calm.submit(20, lambda _: 2.0)
    assert calm.run() < 0.1 + 0.5 + 10.0 + 0.5
    assert calm.idle_s_max < 0.05
    assert calm.work_s_max <= 0.101
