"""The coordinator's inbox: whoever says more than it takes in at once is not read on until it has."""

import asyncio
from typing import cast

import pytest

from dcoord.core.events import Gone
from dcoord.listener import INBOX_BYTES_MAX, INBOX_EVENTS_MAX, Inbox
from districomp.stream import Connection


class Reading:
    """A connection, as far as an inbox knows one."""

    def __init__(self) -> None:
        self.is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@pytest.mark.parametrize(("events", "size"), [(1, INBOX_BYTES_MAX + 1), (INBOX_EVENTS_MAX + 1, 0)])
def test_who_says_too_much_is_read_on_when_it_has_been_taken_in(events: int, size: int) -> None:
    async def fill() -> None:
        inbox, small, large = Inbox(), Reading(), Reading()
        inbox.put(Gone(1, 0.0))
        inbox.hold_back(cast(Connection, small), 1)
        for number in range(events):
            inbox.put(Gone(number, 0.0))
        inbox.hold_back(cast(Connection, large), size)
        assert (small.is_read, large.is_read) == (True, False)
        assert len(await inbox.next_batch(None)) == 1 + events
        assert large.is_read
        inbox.hold_back(cast(Connection, large), INBOX_BYTES_MAX)
        assert large.is_read, "what was taken in does not count any more"

    asyncio.run(fill())
