"""Virtual time: a heap of what happens when. Owns nothing else; the order of equal times is that of their scheduling."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

ROUNDING_S = 1e-6


class Loop:
    """`now` is the true time of the simulated world, in seconds from 0; nobody in it can read that clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time, or now if that is past. What was scheduled stays: the action looks whether it is still wanted."""
        self._count += 1
        heappush(self._heap, (max(time, self.now), self._count, action, arguments))

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something in a while."""
        self.at(self.now + delay_s, action, *arguments)

    def run(self, until: float, is_done: Callable[[], bool], look_s: float) -> bool:
        """Let time pass until `is_done`, which is looked at every `look_s`; False if `until` came first."""
        heap = self._heap
        look = self.now
        while self.now < until:
            if heap and heap[0][0] < look:
                self.now, _, action, arguments = heappop(heap)
                self.steps += 1
                action(*arguments)
                continue
            self.now = look
            if is_done():
                return True
            look = self.now + look_s
        return False


class Clock:
    """One machine's clock: true time and an offset, which may jump."""

    def __init__(self, loop: Loop, offset_s: float) -> None:
        self._loop = loop
        self.offset_s = offset_s

    def now(self) -> float:
        """What this machine takes for the time."""
        return self._loop.now + self.offset_s

    def true(self, time: float) -> float:
        """A true time at which this clock will have passed `time` by no more than rounding, if it does not jump before."""
        return time - self.offset_s + ROUNDING_S
