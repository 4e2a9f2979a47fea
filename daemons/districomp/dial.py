"""Reaching one of several addresses: the first that is right wins, and why each of the others is not it.

Owns the race and the words for what went wrong. Does not know what makes an address the right one: the caller's
attempt does.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from districomp.addresses import address_text
from districomp.errors import DistricompError, TrustError, UnreachableError

CONNECT_S: Final = 5.0
"""How long a connection, its handshake and its first answer may take."""
_NAMED_MAX: Final = 4
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")

Address = tuple[str, int]
T = TypeVar("T")


async def first(
    addresses: Sequence[Address], attempt: Callable[[str, int], Awaitable[T]], discard: Callable[[T], None]
) -> tuple[Address, T]:
    """The address whose attempt succeeds first, and what it gave; what comes from others goes to `discard`.

    UnreachableError if nobody is there, TrustError if somebody is whom we must not believe. All are tried side by
    side, so that whoever advertises wrong addresses cannot keep us from the right one.
    """
    loop = asyncio.get_running_loop()

    async def one(address: Address) -> T:
        async with asyncio.timeout(CONNECT_S):
            return await attempt(*address)

    tasks = {loop.create_task(one(address)): address for address in dict.fromkeys(addresses)}
    reasons: dict[str, Exception] = {}
    winner: asyncio.Task[T] | None = None
    pending = set(tasks)
    try:
        while pending and winner is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    task.result()
                    winner = winner or task
                except (OSError, DistricompError) as error:
                    reasons[address_text(tasks[task])] = error
        if winner is None:
            raise failure(reasons)
        return tasks[winner], winner.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if task is not winner and not task.cancelled() and task.exception() is None:
                discard(task.result())


def failure(reasons: Mapping[str, Exception]) -> DistricompError:
    """One error for why none of these places would do."""
    named = [f"{place}: {words(error)}" for place, error in reasons.items()]
    text = "; ".join(named[:_NAMED_MAX]) + (f"; and {len(named) - _NAMED_MAX} more" if len(named) > _NAMED_MAX else "")
    if any(isinstance(error, TrustError | ssl.SSLError) for error in reasons.values()):
        return TrustError(text)
    return UnreachableError(text or "no address is known")


def words(error: Exception) -> str:
    """What went wrong, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not this cluster's ({error.verify_message or 'not verified'})"
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return "does not speak TLS; it may be `insecure`, or something else"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection came about ({error.reason or 'no reason given'})"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens"
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError):
        return error.strerror or str(error) or "broke the connection off"
    return str(error)
