"""A call at a time that is moved often: whoever waits for the next of many things, and mostly for nothing.

Owns one timer of the event loop, which is set for the earliest of the times and looked at again when it goes off: to move
an alarm to a later time costs nothing. Must not know what it is for.
"""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `call` in the running loop once `now` has reached the time that was set last."""

    def __init__(self, call: Callable[[], None], now: Callable[[], float]) -> None:
        self._call = call
        self._now = now
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def set(self, due: float | None) -> None:
        """Move it to another time, by the clock of `now`; None: it is not to go off."""
        self._due = due
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        self.cancel_timer()
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._now()), self._ring)

    def cancel_timer(self) -> None:
        """Leave nothing behind in the loop; it can be set again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        due = self._due
        if due is None:
            return
        if due > self._now():
            self.set(due)
        else:
            self._due = None
            self._call()
