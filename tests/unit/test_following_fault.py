"""Who follows results is not left waiting by a fault of ours: it is the daemon's, which ends of it."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dcoord.core.core import Core
from dcoord.following import Following, Rows
from districomp.messages import Results
from districomp.stream import Connection


class Slow:
    """A connection that takes its bytes more slowly than there are rows."""

    peer = 1
    takes_more = is_closing = False

    async def drained(self) -> None:
        """It has taken them."""


def test_a_fault_while_serving_who_is_behind_is_the_daemons() -> None:
    async def follow() -> None:
        core = SimpleNamespace(jobs={1: SimpleNamespace(id=1, serial=3, is_ended=False)})
        tasks: list[asyncio.Task[None]] = []

        async def read(_connection: Connection, _request: int, _job: int, _after: int) -> Rows | None:
            raise ZeroDivisionError("a bug")

        def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            tasks.append(asyncio.create_task(work))
            return tasks[-1]

        following = Following(lambda: cast(Core, core), read, spawn)
        following.follow(cast(Connection, Slow()), Results(1, 1, 0, wait=True, follow=True))
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert len(tasks) == 1

    asyncio.run(follow())
