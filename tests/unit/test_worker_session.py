"""A session that is over leaves nothing behind."""

import asyncio
from typing import Any

from dworker.grants import Grants
from dworker.session import Owner, Session, Target

SOME: Any = object()
"""What is not looked at before the connection is made."""


def test_a_key_that_comes_after_the_end_has_no_other_made() -> None:
    async def renew_while_the_connection_ends() -> Session:
        owner = Owner(SOME, SOME, SOME, Grants(lambda _: False), SOME)
        session = Session(Target(SOME, SOME), owner)
        session._renew()
        session.closed(SOME, "the coordinator is gone")
        await asyncio.gather(*session._tasks)
        return session

    session = asyncio.run(renew_while_the_connection_ends())
    assert session.ended.result() == "the coordinator is gone"
    assert not [timer for timer in session._timers.values() if not timer.cancelled()]
