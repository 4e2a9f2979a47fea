"""The log of refused strangers: enough to find out why, and not so much that whoever knocks fills the disk.

Owns how often an address is named. Must not know why anybody is refused.
"""

import logging
import time
from typing import Final

log = logging.getLogger(__name__)

WINDOW_S: Final = 10.0
LOGGED_PER_WINDOW_MAX: Final = 10
"""Lines of one address within WINDOW_S: enough for each thing that is wrong with a machine to be seen once."""
LOGGED_ADDRESSES_MAX: Final = 1024


class Refusals:
    """What one listener refuses; `what` names it in the log."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._logged: dict[str, tuple[float, int]] = {}
        """An address' window: since when (monotonic), and the lines so far."""

    def add(self, group: str, text: str) -> None:
        """Log a refusal, some of an address (`addresses.address_group`) at a time; more with the debug level alone."""
        now = time.monotonic()
        since, count = self._logged.pop(group, (now, 0))
        if now - since >= WINDOW_S:
            since, count = now, 0
        while len(self._logged) >= LOGGED_ADDRESSES_MAX:
            del self._logged[next(iter(self._logged))]
        self._logged[group] = since, count + 1
        if count >= LOGGED_PER_WINDOW_MAX:
            log.debug("%s refuses %s", self._what, text)
            return
        log.warning("%s refuses %s", self._what, text)
