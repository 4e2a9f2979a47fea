"""An alarm in a real event loop: it goes off when its time has come, wherever it was moved before."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from districomp.alarm import Alarm

SOON_S = 0.01


class Bell:
    """Alarms, and when each has gone off."""

    def __init__(self) -> None:
        self.rung: list[float] = []
        self.alarm = Alarm(self._ring, time.monotonic)
        self._changed = asyncio.Event()

    def _ring(self) -> None:
        self.rung.append(time.monotonic())
        self._changed.set()

    async def has_rung(self) -> None:
        async with asyncio.timeout(10):
            await self._changed.wait()


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await test()

    asyncio.run(run())


def test_it_goes_off_once_when_its_time_has_come() -> None:
    async def test() -> None:
        bell, later = Bell(), Bell()
        due = time.monotonic() + SOON_S
        bell.alarm.set(due)
        await bell.has_rung()
        assert bell.rung[0] >= due
        later.alarm.set(time.monotonic() + SOON_S)
        await later.has_rung()
        assert len(bell.rung) == 1

    in_loop(test)


def test_moved_to_a_later_time_it_keeps_its_timer_and_goes_off_then() -> None:
    async def test() -> None:
        bell = Bell()
        begun = time.monotonic()
        bell.alarm.set(begun + SOON_S)
        timer = bell.alarm._timer
        bell.alarm.set(begun + 3 * SOON_S)
        assert bell.alarm._timer is timer
        await bell.has_rung()
        assert bell.rung[0] >= begun + 3 * SOON_S

    in_loop(test)


def test_moved_to_an_earlier_time_it_does_not_wait_for_the_later() -> None:
    async def test() -> None:
        bell = Bell()
        begun = time.monotonic()
        bell.alarm.set(begun + 3600)
        bell.alarm.set(begun + SOON_S)
        await bell.has_rung()

    in_loop(test)


def test_a_time_that_has_passed_is_now() -> None:
    async def test() -> None:
        bell = Bell()
        bell.alarm.set(time.monotonic() - 1)
        await bell.has_rung()

    in_loop(test)


def test_one_that_was_put_off_for_good_is_silent() -> None:
    async def test() -> None:
        put_off, cancelled, other = Bell(), Bell(), Bell()
        for bell in (put_off, cancelled):
            bell.alarm.set(time.monotonic() + SOON_S)
        put_off.alarm.set(None)
        cancelled.alarm.cancel_timer()
        other.alarm.set(time.monotonic() + 2 * SOON_S)
        await other.has_rung()
        assert not put_off.rung and not cancelled.rung
        put_off.alarm.set(time.monotonic())
        await put_off.has_rung()

    in_loop(test)
