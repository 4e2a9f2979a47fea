"""Rights to payloads: those that came along with leases, and those asked for, kept as long as they are good.

Owns the questions to the coordinator that are under way. Must not know how a payload is fetched.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from districomp.errors import DistricompError
from districomp.messages import AskGrant, Assign, Granted, Message, Refused
from districomp.model import task_text

ANSWER_S: Final = 10.0
KEPT_MAX: Final = 16_384
"""As many as a worker may hold leases; the oldest are forgotten, and asked for if they are needed after all."""
ASSIGNED_S: Final = 300.0
"""So long a right that came with a lease is tried without asking for another."""
EARLY_S: Final = 30.0
"""A right that ends so soon is not begun with."""


class GrantError(DistricompError):
    """There is no right to be had; `final`: asking again is of no use."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Need(NamedTuple):
    """What a right is needed for; `lease`: the one that needs it, 0 if it is known by what was noted of the path."""

    verb: str
    path: str
    lease: int = 0


class Place(NamedTuple):
    """The data port: `authorities` (DER) and the `name` that its certificate must have; none: plain HTTP, and no rights."""

    url: str
    authorities: tuple[bytes, ...] = ()
    name: str = ""


class Grants:
    """The worker's. `ask` sends to the coordinator, and says whether there is one."""

    def __init__(self, ask: Callable[[Message], bool]) -> None:
        self._ask = ask
        self._leases: dict[str, int] = {}
        self._kept: dict[tuple[str, str], tuple[str, float]] = {}
        self._waiting: dict[int, tuple[Need, asyncio.Future[str]]] = {}
        self._request = 0

    def number(self) -> int:
        """A request's number, of this link alone."""
        self._request += 1
        return self._request

    # ---- what comes along ----

    def assigned(self, assign: Assign) -> None:
        """Leases came, some perhaps with rights to their items."""
        if len(assign.grants) != len(assign.indexes):
            return
        until = time.monotonic() + ASSIGNED_S
        for index, grant in zip(assign.indexes, assign.grants, strict=True):
            if grant:
                self._keep("GET", f"/tasks/{task_text(assign.job, index)}", grant, until)

    def needed(self, path: str, lease: int) -> None:
        """This lease will need what is at this path."""
        self._leases.pop(path, None)
        self._leases[path] = lease
        if len(self._leases) > KEPT_MAX:
            del self._leases[next(iter(self._leases))]

    # ---- for whoever fetches ----

    async def get(self, need: Need, *, fresh: bool = False) -> str:
        """The right to do this; `fresh`: not the one from before. GrantError if there is none just now."""
        known = self._kept.get(need[:2])
        if known is not None and not fresh and known[1] > time.monotonic():
            return known[0]
        lease = need.lease or self._leases.get(need.path, 0)
        request = self.number()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[request] = need, answer
        try:
            if not self._ask(AskGrant(request, need.verb, need.path, lease)):
                raise GrantError("there is no coordinator to ask for the right to fetch it")
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise GrantError("the coordinator does not answer the question for the right to fetch it") from None
        finally:
            del self._waiting[request]

    def done(self, path: str) -> None:
        """Nobody will ask for this path any more."""
        self._leases.pop(path, None)
        self._kept.pop(("GET", path), None)
        self._kept.pop(("PUT", path), None)

    # ---- what the coordinator answers ----

    def answered(self, message: Granted | Refused) -> None:
        """An answer; one that nobody waits for is nothing to us."""
        need, answer = self._waiting.get(message.request, (None, None))
        if need is None or answer is None or answer.done():
            return
        if isinstance(message, Granted):
            self._keep(need.verb, need.path, message.grant, time.monotonic() + message.expires_s - EARLY_S)
            answer.set_result(message.grant)
        else:
            final = message.code not in ("degraded", "stopping")
            answer.set_exception(GrantError(f"the coordinator gives no right to it: {message.text}", final=final))

    def lost(self) -> None:
        """The connection is gone, and with it every answer."""
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(GrantError("the connection to the coordinator was lost"))

    def _keep(self, verb: str, path: str, grant: str, until: float) -> None:
        self._kept.pop((verb, path), None)
        self._kept[verb, path] = grant, until
        if len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
