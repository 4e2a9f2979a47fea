"""Results on their way to clients: pushed as they commit to whoever follows a job, read from the journal by whoever is behind.

Owns how far each client has got, and that none of them holds up the others or grows the coordinator: who does not
take what was sent is sent nothing more until it has. Knows nothing of who may ask. Called in the loop, after commits.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from dcoord.core.core import Core
from dcoord.core.records import OutcomeRecord, Record
from dcoord.journal import pack_outcome
from districomp.messages import BATCH_BYTES, Refused, ResultRows, Results
from districomp.stream import Connection

FOLLOWED_MAX: Final = 1024
"""Requests for results that one connection has under way; a further one is refused."""
RECENT_BYTES: Final = 4 * 1024 * 1024
"""So much of the newest rows is kept at hand, for those who follow closely."""
ENTRY_BYTES: Final = 256
"""What keeping a row costs beside its bytes."""

Rows = tuple[list[bytes], int]
"""Packed outcomes in their order, and the serial of the last."""
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Runs something beside the loop, whose fault ends the daemon rather than leaving somebody waiting."""
ReadRows = Callable[[Connection, int, int, int], Coroutine[Any, Any, Rows | None]]
"""(connection, request, job, after): the next rows from the journal, about BATCH_BYTES; None: the client was told why not."""


class _Follower:
    """A request for results under way. `sent`: the serial up to which its client has the rows."""

    __slots__ = ("connection", "is_behind", "is_ended", "job", "once", "request", "sent", "wait")

    def __init__(self, connection: Connection, message: Results) -> None:
        self.connection = connection
        self.request = message.request
        self.job = message.job
        self.sent = message.after
        self.wait = message.wait or message.follow
        self.once = not message.follow
        self.is_behind = False
        """Whether it waits its turn."""
        self.is_ended = False


class _Followed:
    """A job that is followed, as it was at the last commit."""

    __slots__ = ("followers", "head", "is_ended")

    def __init__(self) -> None:
        self.head = 0
        """The serial of its last row."""
        self.is_ended = False
        self.followers: dict[_Follower, None] = {}


class _Client:
    """A connection that follows jobs. `behind`: those of its requests that wait their turn, which `pump` gives them."""

    __slots__ = ("behind", "followers", "pump")

    def __init__(self) -> None:
        self.followers: dict[_Follower, None] = {}
        self.behind: deque[_Follower] = deque()
        self.pump: asyncio.Task[None] | None = None


class Following:
    """All requests for results. `core` gives the core of now, which must be as the journal is whenever this is called."""

    def __init__(self, core: Callable[[], Core], read: ReadRows, spawn: Spawn) -> None:
        self._core = core
        self._read = read
        self._spawn = spawn
        self._jobs: dict[int, _Followed] = {}
        self._clients: dict[int, _Client] = {}
        self._recent: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        """By job and serial, in the order of the commits."""
        self._recent_bytes = 0

    # ---- the driver's side ----

    def follow(self, connection: Connection, message: Results) -> None:
        """Serve a request for the results of a job that there is; called after the commit of the batch in which it came."""
        client = self._clients.setdefault(connection.peer, _Client())
        if len(client.followers) >= FOLLOWED_MAX:
            text = f"this connection already waits for the results of {FOLLOWED_MAX} requests"
            connection.send(Refused(message.request, "bad_request", text))
            return
        job = self._core().jobs[message.job]
        followed = self._jobs.setdefault(job.id, _Followed())
        followed.head, followed.is_ended = job.serial, job.is_ended
        follower = _Follower(connection, message)
        client.followers[follower] = followed.followers[follower] = None
        self._advance(client, follower)

    def after_batch(self, records: Iterable[Record], changed: Iterable[int]) -> None:
        """A batch is committed, and these jobs have changed: tell those who follow them."""
        for record in records:
            if isinstance(record, OutcomeRecord):
                self._remember(record)
        if not self._jobs:
            return
        core = self._core()
        for number in changed:
            followed = self._jobs.get(number)
            if followed is None:
                continue
            job = core.jobs[number]
            followed.head, followed.is_ended = job.serial, job.is_ended
            for follower in list(followed.followers):
                client = self._clients[follower.connection.peer]
                if not follower.is_behind:
                    self._advance(client, follower)

    def forget(self, peer: int) -> None:
        """A connection is gone."""
        client = self._clients.pop(peer, None)
        if client is None:
            return
        for follower in list(client.followers):
            self._end(client, follower)
        if client.pump is not None:
            client.pump.cancel()

    def close(self) -> None:
        """The coordinator stops."""
        for peer in list(self._clients):
            self.forget(peer)

    # ---- inside ----

    def _remember(self, record: OutcomeRecord) -> None:
        outcome = record.outcome
        body = record.body or pack_outcome(outcome)
        self._recent[outcome.job, outcome.serial] = body
        self._recent_bytes += len(body) + ENTRY_BYTES
        while self._recent_bytes > RECENT_BYTES:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= len(oldest) + ENTRY_BYTES

    def _recent_rows(self, job: int, after: int) -> Rows:
        """What is at hand of a job's rows right after this serial, about BATCH_BYTES; none if the next is not."""
        rows: list[bytes] = []
        size = 0
        while (row := self._recent.get((job, after + 1))) is not None:
            size += len(row)
            if rows and size > BATCH_BYTES:
                break
            rows.append(row)
            after += 1
        return rows, after

    def _advance(self, client: _Client, follower: _Follower) -> None:
        """Send what is at hand. Who needs the journal, or does not take what it was sent, has to wait its turn."""
        while not follower.is_ended:
            followed = self._jobs[follower.job]
            is_at_head = follower.sent >= followed.head
            if is_at_head and follower.wait and not followed.is_ended:
                return
            rows, last = self._recent_rows(follower.job, follower.sent)
            if not (rows or is_at_head) or not follower.connection.takes_more:
                self._wait_turn(client, follower)
                return
            self._send(client, follower, rows, last)

    def _send(self, client: _Client, follower: _Follower, rows: list[bytes], last: int) -> None:
        followed = self._jobs[follower.job]
        is_last = followed.is_ended and last >= followed.head
        follower.sent = last
        follower.connection.send(ResultRows(follower.request, rows, last, is_last))
        if is_last or follower.once:
            self._end(client, follower)

    def _end(self, client: _Client, follower: _Follower) -> None:
        follower.is_ended = True
        client.followers.pop(follower, None)
        followed = self._jobs[follower.job]
        del followed.followers[follower]
        if not followed.followers:
            del self._jobs[follower.job]

    # ---- who is behind ----

    def _wait_turn(self, client: _Client, follower: _Follower) -> None:
        follower.is_behind = True
        client.behind.append(follower)
        if client.pump is None:
            client.pump = self._spawn(self._pump(client, follower.connection))

    async def _pump(self, client: _Client, connection: Connection) -> None:
        """Serve those of one connection that are behind, in turn and at its pace: one piece is under way at a time."""
        while client.behind and not connection.is_closing:
            await connection.drained()
            follower = client.behind[0]
            rows, last = self._recent_rows(follower.job, follower.sent)
            if not rows and follower.sent < self._jobs[follower.job].head:
                found = await self._read(connection, follower.request, follower.job, follower.sent)
                if found is None:
                    client.behind.popleft()
                    self._end(client, follower)
                    continue
                rows, last = found
            client.behind.popleft()
            follower.is_behind = False
            if rows:
                self._send(client, follower, rows, last)
            # One piece each in its turn: there may be a thousand of them.
            if client.behind and not follower.is_ended and follower.sent < self._jobs[follower.job].head:
                self._wait_turn(client, follower)
            else:
                self._advance(client, follower)
        client.pump = None
