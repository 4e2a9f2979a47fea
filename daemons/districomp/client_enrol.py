"""What only asyncio can do for a client that blocks: enrolling, and finding a coordinator by mDNS.

Owns the thread in which that runs, because the caller may have an event loop of its own (a notebook does). Imported when
it is needed: it brings asyncio, zeroconf and cryptography.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from districomp import enrolment
from districomp.config import Paths, load_worker
from districomp.errors import ConfigError, NotAllowedError, RefusedError, UnreachableError
from districomp.identity import Identity
from districomp.tokens import JoinToken

FIND_S: Final = 10.0
NAME_CHARS_MAX: Final = 63
NOT_LET_IN: Final = frozenset(
    ("bad_token", "token_expired", "token_used_up", "token_revoked", "not_allowed", "too_many")
)
"""What a coordinator refuses a token with, rather than the request."""

T = TypeVar("T")
Host = tuple[str, int]


def joined(
    token: JoinToken,
    where: Sequence[Host] = (),
    *,
    worker: str = "",
    name: str = "",
    slots: int = 0,
    interfaces: list[str] | None = None,
) -> Identity:
    """An identity for a token, from one of these addresses, else from where mDNS says that its cluster is.

    UnreachableError, TrustError, NotAllowedError (the token is no good), RefusedError; the token is in none of them.
    """
    addresses = list(where) or found(token.cluster, FIND_S, interfaces)
    if not addresses:
        raise UnreachableError(
            f"no coordinator of the cluster {token.cluster} answers on this network within {FIND_S:g} s; is dcoord "
            "running there, and are both machines in one network? If it passes no multicast, name the address: "
            "DISTRICOMP_COORDINATOR=HOST:PORT"
        )
    try:
        return aside(
            lambda: enrolment.enrol(
                addresses, role=token.role, worker=worker, name=name or client_name(), slots=slots, token=token
            )
        )
    except RefusedError as error:
        if error.code in NOT_LET_IN:
            raise NotAllowedError(str(error)) from error
        raise


def found(cluster: str, timeout_s: float, interfaces: list[str] | None = None) -> list[Host]:
    """Where a cluster (by its id) claims to be; [] if it does not say so in time, or this machine cannot ask.

    `interfaces`: names or addresses, None for those that this machine's `dworker.yaml` names, else all.
    """
    if interfaces is None:
        interfaces = worker_interfaces()
    try:
        return aside(lambda: enrolment.find(cluster, interfaces, timeout_s))
    except ConfigError:
        return []


def worker_interfaces() -> list[str] | None:
    """The interfaces that this machine's worker is told to use for mDNS; None: all."""
    try:
        return load_worker(None, Paths.from_environment(), {}).discovery.interfaces or None
    except ConfigError:
        return None


def client_name() -> str:
    """This user on this machine, for people who look at who belongs to the cluster."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    name = f"{user}@{socket.gethostname().partition('.')[0]}"
    return "".join(c if c.isascii() and c.isprintable() else "-" for c in name)[:NAME_CHARS_MAX]


def aside(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end in a thread of its own, whatever loop the caller is in; its result or exception."""
    outcome: list[T | BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def main() -> None:
        task = asyncio.ensure_future(start())
        running.append((asyncio.get_running_loop(), task))
        outcome.extend(await asyncio.gather(task, return_exceptions=True))

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="enrolment", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)
        thread.join(1.0)
        raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def worker_folder(paths: Paths) -> Path:
    """Where this machine's worker keeps its identity."""
    return paths.worker_state / "identity"
