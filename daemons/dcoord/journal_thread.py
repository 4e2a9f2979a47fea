"""Where the journal's work is done: in its own thread, or on the spot where the way there would take longer than the work.

Owns that the journal is used by one thread at a time. Must not know what is written.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from dcoord.core.records import OutcomeRecord, PayloadRecord, Record
from dcoord.journal import Journal

T = TypeVar("T")

TASKS_ON_THE_SPOT: Final = 32
"""Records, and tasks in them. While more is written the loop had better read what comes next: there is more of it."""
ON_THE_SPOT_S: Final = 0.001
"""While no commit takes longer than this, the two changes of thread (0.1 ms and more) are worth saving."""
_FADING: Final = 0.9
"""How much of a slow commit is remembered at the next one."""
HELD_UP_S: Final = 0.1
"""The loop was away for so long that what has arrived meanwhile must be heard before anything is done by the clock."""
CATCH_UP_S: Final = 0.01


class JournalThread:
    """One thread for the journal, whose connection belongs to one at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._under_way = 0
        self._slowest_s = 10 * ON_THE_SPOT_S
        """How long a commit takes, at its worst of late; a disk has to prove first that it is quick."""

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in the thread."""
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._under_way -= 1

    async def commit(self, journal: Journal, records: Sequence[Record]) -> None:
        """`Journal.commit`, in whichever way is quicker. JournalError."""
        if self._under_way or self._slowest_s > ON_THE_SPOT_S or not _is_small(records):
            self._note(await self.run(lambda: _timed(journal, records)))
            return
        took_s = _timed(journal, records)
        self._note(took_s)
        if took_s > HELD_UP_S:
            # Nobody is to be taken for silent who was only not heard.
            await asyncio.sleep(CATCH_UP_S)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown()

    def _note(self, took_s: float) -> None:
        self._slowest_s = max(took_s, _FADING * self._slowest_s)


def _is_small(records: Sequence[Record]) -> bool:
    if len(records) > TASKS_ON_THE_SPOT:
        return False
    tasks = sum(len(record.outcome.indexes) for record in records if isinstance(record, OutcomeRecord))
    tasks += sum(len(record.items) for record in records if isinstance(record, PayloadRecord))
    return tasks <= TASKS_ON_THE_SPOT


def _timed(journal: Journal, records: Sequence[Record]) -> float:
    begun = time.monotonic()
    journal.commit(records)
    return time.monotonic() - begun
