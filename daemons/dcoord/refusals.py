"""The log of refused strangers: enough to find out why, and not so much that whoever knocks fills the disk.

Owns how often an address is named. Must not know why anybody is refused.
"""

import logging
import time
from typing import Final

log = logging.getLogger(__name__)

LOGGED_PER_ADDRESS_S: Final = 10.0
"""A refused address is logged so often at most."""
LOGGED_ADDRESSES_MAX: Final = 1024


class Refusals:
    """What one listener refuses; `what` names it in the log."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._logged: dict[str, float] = {}

    def add(self, group: str, text: str) -> None:
        """Log a refusal, once in a while an address (`addresses.address_group`); the others with the debug level."""
        now = time.monotonic()
        last = self._logged.get(group)
        if last is not None and now - last < LOGGED_PER_ADDRESS_S:
            log.debug("%s refuses %s", self._what, text)
            return
        self._logged.pop(group, None)
        while len(self._logged) >= LOGGED_ADDRESSES_MAX:
            del self._logged[next(iter(self._logged))]
        self._logged[group] = now
        log.warning("%s refuses %s", self._what, text)
