"""One connection to the coordinator, from the greeting to its end, and what belongs to no task: renewing the certificate,
rights to payloads.

What is said of tasks is the core's; this only carries it, and stamps arrival times with the core's clock.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import msgspec

from districomp import systemd
from districomp.dial import Address
from districomp.errors import TrustError
from districomp.identity import Identity
from districomp.messages import (
    GREETING_S,
    AnyMessage,
    Assign,
    Authorities,
    Enrolled,
    Goodbye,
    Granted,
    HelloWorker,
    Message,
    Refused,
    Renew,
    Welcome,
)
from districomp.stream import Connection
from districomp.tokens import cluster_id
from dworker import standing
from dworker.events import Events, Received
from dworker.grants import Grants
from dworker.trust import Trust

if TYPE_CHECKING:
    from districomp.keys import NewKey

log = logging.getLogger(__name__)

RENEW_AGAIN_S: Final = 60.0
"""After a renewal that came to nothing."""
RENEW_MIN_S: Final = 0.5
TEXT_CHARS_MAX: Final = 500


class Target(msgspec.Struct, frozen=True):
    """Who is to be there, and who we say we are. `identity` None: `insecure`. `cluster`: the id that must answer, '' any."""

    hello: HelloWorker
    identity: Identity | None = None
    cluster: str = ""


class Owner(msgspec.Struct, frozen=True):
    """Where a session's news go. `trust` None: `insecure`."""

    post: Callable[[Events], None]
    welcomed: Callable[["Session", Welcome, float], None]
    renewed: Callable[[], None]
    grants: Grants
    trust: Trust | None


class Session:
    """A stream.Handler for one connection. `ended` is set when it is over."""

    def __init__(self, target: Target, owner: Owner) -> None:
        self.target = target
        self.identity = target.identity
        self.welcomed = False
        self.goodbye: Goodbye | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.address: Address = ("", 0)
        """Where we connected to."""
        self.connection: Connection | None = None
        self._owner = owner
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: tuple[int, NewKey] | None = None
        self._keeping = asyncio.Lock()

    # ---- for the link ----

    @property
    def place(self) -> str:
        """Where the coordinator is, for people."""
        return self.connection.address if self.connection is not None else "?"

    @property
    def host(self) -> str:
        """The host at which the coordinator was reached."""
        return self.connection.host if self.connection is not None else ""

    def greet(self, address: Address) -> None:
        """Say who we are; there must be an answer soon."""
        self.address = address
        self.send(self.target.hello)
        self._after("greeting", GREETING_S, self._check_greeting)

    def send(self, message: Message) -> bool:
        """Send to the coordinator; False if the connection is gone."""
        if self.connection is None or self.connection.is_closing:
            return False
        self.connection.send(message)
        return True

    def close(self, code: str = "", text: str = "") -> None:
        """End it, with a Goodbye if there is a code."""
        if self.connection is not None:
            self.connection.close(code, text)

    # ---- stream.Handler ----

    def opened(self, connection: Connection) -> None:
        """See stream.Handler."""
        self.connection = connection

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        """See stream.Handler. `at` is by a clock that can jump; the core's cannot."""
        now = time.monotonic()
        for message in messages:
            if isinstance(message, Goodbye):
                self.goodbye = message
            elif not self.welcomed:
                self._on_first(message, now)
            else:
                self._on_message(message, now)

    def closed(self, connection: Connection, reason: str) -> None:
        """See stream.Handler."""
        for timer in self._timers.values():
            timer.cancel()
        if self.welcomed:
            self._owner.grants.lost()
        if not self.ended.done():
            self.ended.set_result(self.goodbye.text[:TEXT_CHARS_MAX] if self.goodbye is not None else reason)

    # ---- what comes ----

    def _on_first(self, message: AnyMessage, now: float) -> None:
        """The first message must be a Welcome that we can accept."""
        target = self.target
        if not isinstance(message, Welcome) or "greeting" not in self._timers:
            self.close("protocol", "the first message was not a Welcome")
            return
        if target.cluster and message.cluster != target.cluster:
            # Somebody else has taken over the address meanwhile.
            self.close("cluster", f"this is {message.name} ({message.cluster}), not {target.cluster}")
            return
        self.welcomed = True
        self._timers["greeting"].cancel()
        log.info("joined %s (%s) at %s", message.name, message.cluster, self.place)
        systemd.status(standing.joined(message.name, self.place))
        self._owner.welcomed(self, message, now)
        if self.identity is not None and self._owner.trust is not None:
            self._spawn(self._owner.trust.accepted(self.identity, self.address))
            if set(message.authorities) - set(self.identity.authorities):
                self._renew()
            elif message.renew_s > 0:
                self._renew_after(message.renew_s)

    def _on_message(self, message: AnyMessage, now: float) -> None:
        match message:
            case Granted():
                self._owner.grants.answered(message)
            case Refused():
                self._on_refused(message)
            case Authorities():
                log.info("the authority of %s was replaced: renewing the certificate", message.name)
                self._renew()
            case Enrolled():
                self._on_enrolled(message)
            case Assign():
                self._owner.grants.assigned(message)
                self._owner.post(Received(message, now))
            case _:
                self._owner.post(Received(message, now))

    def _check_greeting(self) -> None:
        if not self.welcomed:
            self.close("protocol", f"no Welcome within {GREETING_S:g} s")

    # ---- the certificate ----

    def _renew_after(self, seconds: float) -> None:
        self._after("renew", max(RENEW_MIN_S, seconds), self._renew)

    def _renew(self) -> None:
        """Ask for a certificate for a new key, on this very connection."""
        if self.identity is not None and self._owner.trust is not None:
            self._spawn(self._ask_for_certificate())

    async def _ask_for_certificate(self) -> None:
        from districomp.keys import new_key

        key = await asyncio.to_thread(new_key)
        request = self._owner.grants.number()
        # A later question takes the place of an earlier one: its answer knows the newest authority.
        self._renewing = request, key
        self.send(Renew(request, key.csr))
        self._renew_after(RENEW_AGAIN_S)

    def _on_refused(self, message: Refused) -> None:
        if self._renewing is not None and message.request == self._renewing[0]:
            self._renewing = None
            log.warning("the certificate is not renewed: %s; trying again in %g s", message.text, RENEW_AGAIN_S)
        else:
            self._owner.grants.answered(message)

    def _on_enrolled(self, message: Enrolled) -> None:
        if self._renewing is None or message.request != self._renewing[0] or self.identity is None:
            return
        key, self._renewing = self._renewing[1], None
        self._spawn(self._keep(message, key))

    async def _keep(self, enrolled: Enrolled, key: "NewKey") -> None:
        # One after the other: a second rotation's certificate can be here before the first one's is on the disk, and
        # takes the place of that one, not of the one before.
        async with self._keeping:
            assert self._owner.trust is not None
            assert self.identity is not None
            try:
                fresh = await self._owner.trust.renewed(self.identity, enrolled, key)
            except TrustError as error:
                log.warning("the certificate is not renewed: %s; trying again in %g s", error, RENEW_AGAIN_S)
                return
            if fresh is None:
                return
            log.info("the certificate is renewed")
            self.identity = fresh
            self._owner.renewed()
            if enrolled.renew_s > 0:
                self._renew_after(enrolled.renew_s)

    # ---- inside ----

    def _after(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        if self.ended.done():
            return  # a key or a certificate came after the end, which has cancelled every timer
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, call)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()


def identifiers(identity: Identity | None, welcome: Welcome) -> list[str]:
    """Every id by which the cluster of a connection may be known."""
    ids = [welcome.cluster, *map(cluster_id, welcome.authorities)]
    return ids + ([identity.pin, *identity.clusters] if identity is not None else [])
