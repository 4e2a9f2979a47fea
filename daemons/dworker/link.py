"""The connection to the coordinator: found or given, greeted, lost, made again, for ever.

Owns which addresses are tried, when, and which cluster is the right one. What is said after the
greeting is the core's; this only carries it, and stamps arrival times with the core's clock.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from districomp.config import check_loopback
from districomp.discovery import Browser, Found
from districomp.errors import ConfigError
from districomp.messages import GREETING_S, AnyMessage, Goodbye, HelloWorker, Message, Welcome
from districomp.stream import Connection
from dworker.events import Connected, Disconnected, Events, Received

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 15.0
STEADY_S: Final = 5.0
"""A connection that lasted so long was a good one: the next backoff begins anew."""
CONNECT_S: Final = 5.0
ALONE_S: Final = 1.0
"""A worker that was not told its cluster joins the one that is the only one for so long."""
NAMED_S: Final = 0.15
"""One that was told a name joins the only one of that name after so long: answers come within 0.12 s (RFC 6762, 6)."""
_LASTING_CODES: Final = ("version", "cluster", "replaced", "protocol")
"""Goodbyes that will most likely be said again: no hurry to hear them."""


class Link:
    """Keeps a connection; `post` brings events to the core. `cluster`: name or id, '' if any."""

    def __init__(self, hello: HelloWorker, coordinator: tuple[str, int] | None, post: Callable[[Events], None]) -> None:
        self._hello = hello
        self._fixed = coordinator
        self._post = post
        self._joined = ""  # the id of the cluster that this process belongs to
        self._found: list[Found] = []
        self._alone: tuple[str, float] | None = None
        self._changed = asyncio.Event()
        self._connection: Connection | None = None
        self._session: asyncio.Future[str] | None = None
        self._welcomed = False
        self._goodbye: Goodbye | None = None
        self._expected = ""  # the id of the cluster that was found at the address, '' if that was given
        self._refused_addresses: dict[str, None] = {}

    # ---- for the daemon ----

    def send(self, message: Message) -> None:
        """Send to the coordinator; nothing happens without a connection."""
        if self._connection is not None:
            self._connection.send(message)

    def reset(self, code: str, text: str) -> None:
        """End the connection with a Goodbye; another will be made."""
        if self._connection is not None:
            log.warning("closing the connection: %s", text)
            self._connection.close(code, text)

    async def run(self, interfaces: list[str] | None) -> None:
        """Connect, and connect again, until cancelled. ConfigError if mDNS is needed and cannot be used."""
        browser = None
        if self._fixed is None:
            browser = Browser(interfaces, self._on_found)
            await browser.start()
        try:
            failures = 0
            while True:
                addresses = await self._addresses()
                lasted = await self._attempt(addresses)
                failures = 0 if lasted else failures + 1
                await self._pause(failures)
        finally:
            if self._connection is not None:
                self._connection.close("stopping", "the worker stops")
            if browser is not None:
                await browser.close()

    # ---- where to ----

    def _on_found(self, found: list[Found]) -> None:
        self._found = found
        self._changed.set()

    async def _addresses(self) -> list[tuple[str, int]]:
        """Where the right coordinator may be; waits until there is an answer."""
        if self._fixed is not None:
            return [self._fixed]
        said, patient_until = "", time.monotonic() + ALONE_S
        while True:
            self._changed.clear()
            now = time.monotonic()
            chosen, wait_s = self._choose(now)
            if chosen is not None:
                usable = self._usable(chosen)
                if usable:
                    self._expected = chosen.cluster
                    return usable
            words = self._words()
            if wait_s is None and words != said:
                if now < patient_until:  # an answer may be on its way
                    wait_s = patient_until - now
                else:
                    said = words
                    log.log(logging.WARNING if len(self._candidates()) > 1 else logging.INFO, "%s", words)
            # Not asyncio.wait_for, which in Python 3.11 can swallow a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def _choose(self, now: float) -> tuple[Found | None, float | None]:
        """The cluster to join, or how long to wait before asking again (None: until something changes)."""
        candidates = self._candidates()
        if len(candidates) != 1:
            self._alone = None
            return None, None
        only, wanted = candidates[0], self._wanted
        if wanted == only.cluster:
            return only, None
        if self._alone is None or self._alone[0] != only.cluster:
            self._alone = (only.cluster, now + (NAMED_S if wanted else ALONE_S))
        left = self._alone[1] - now
        return (only, None) if left <= 0 else (None, left)

    @property
    def _wanted(self) -> str:
        """The id or name of the cluster to join, '' if any will do."""
        return self._joined or self._hello.cluster

    def _candidates(self) -> list[Found]:
        """The clusters found that may be meant. An id is one cluster's, a name may be that of several."""
        wanted = self._wanted
        if not wanted:
            return self._found
        exact = [one for one in self._found if one.cluster == wanted]
        return exact or [one for one in self._found if one.name == wanted]

    def _usable(self, found: Found) -> list[tuple[str, int]]:
        """Its addresses on this machine: there is no trust yet, so no other is connected to."""
        usable = []
        for address, port in found.addresses:
            try:
                usable.append((check_loopback(address), port))
            except ConfigError:
                if address not in self._refused_addresses and len(self._refused_addresses) < 1000:
                    self._refused_addresses[address] = None
                    log.warning(
                        "%s advertises %s, another machine: not connecting in this version", found.name, address
                    )
        return usable

    def _words(self) -> str:
        """What is being waited for, for people."""
        wanted = self._wanted
        several = sorted(self._candidates(), key=lambda one: one.cluster)
        if wanted and len(several) > 1:
            each = "; ".join(f"{one.cluster} at {_places(one)}" for one in several[:10])
            return (
                f"{len(several)} clusters are called {wanted}: {each}; joining none of them: "
                "write the id of the right one as `cluster` in dworker.yaml"
            )
        seen = ", ".join(f"{one.name} ({one.cluster})" for one in self._found[:10])
        if wanted:
            return f"waiting for the cluster {wanted}" + (f"; seen: {seen}" if seen else "")
        if len(self._found) > 1:
            return f"several clusters are here: {seen}; name one as `cluster` in dworker.yaml"
        return "waiting for a coordinator to be found"

    # ---- one connection ----

    async def _attempt(self, addresses: list[tuple[str, int]]) -> bool:
        """Connect to whichever address answers first and stay there until it ends; whether we were welcome."""
        self._goodbye, self._welcomed = None, False
        session = self._session = asyncio.get_running_loop().create_future()
        connection = await self._connect(addresses)
        if connection is None:
            where = ", ".join(f"{host}:{port}" for host, port in addresses[:4])
            log.debug("no coordinator answers at %s", where)
            return False
        self._connection = connection
        connection.send(self._hello)
        timer = asyncio.get_running_loop().call_later(GREETING_S, self._check_greeting, connection)
        begun = time.monotonic()
        try:
            reason = await session
        finally:
            timer.cancel()
        self._connection = None
        if self._welcomed:
            log.warning("lost the coordinator at %s: %s", connection.address, reason)
            self._post(Disconnected())
        elif self._goodbye is not None:
            log.warning("the coordinator at %s refuses this worker: %s", connection.address, self._goodbye.text)
        else:
            log.info("no coordinator at %s: %s", connection.address, reason)
        # One that ends soon again and again (the two do not understand each other) must not be tried at full speed.
        return self._welcomed and time.monotonic() - begun >= STEADY_S

    async def _connect(self, addresses: list[tuple[str, int]]) -> Connection | None:
        """The first connection that comes about; the others are dropped."""
        loop = asyncio.get_running_loop()

        async def one(host: str, port: int) -> Connection:
            _, connection = await loop.create_connection(lambda: Connection(self), host, port)
            return connection

        tasks = [loop.create_task(one(host, port)) for host, port in addresses]
        winner: Connection | None = None
        try:
            for finished in asyncio.as_completed(tasks, timeout=CONNECT_S):
                try:
                    winner = await finished
                    break
                except (OSError, TimeoutError):
                    continue
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Connection) and result is not winner:
                    result.close()
        return winner

    def _check_greeting(self, connection: Connection) -> None:
        if not self._welcomed:
            connection.close("protocol", f"no Welcome within {GREETING_S:g} s")

    async def _pause(self, failures: int) -> None:
        """Full jitter: anything between nothing and the bound, so that a thousand workers do not come at once."""
        bound = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 10))
        if self._is_lasting():
            bound = BACKOFF_MAX_S
        pause_s = random.uniform(0, bound)
        if failures == 0 or failures % 10 == 1:
            log.info("reconnecting in %.1f s", pause_s)
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._changed.wait()

    def _is_lasting(self) -> bool:
        return self._goodbye is not None and self._goodbye.code in _LASTING_CODES

    # ---- stream.Handler ----

    def opened(self, connection: Connection) -> None:
        """See stream.Handler."""

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None:
        """See stream.Handler. `at` is by a clock that can jump; the core's cannot."""
        if connection is not self._connection:
            return
        now = time.monotonic()
        for message in messages:
            if isinstance(message, Goodbye):
                self._goodbye = message
            elif not self._welcomed:
                self._greet(connection, message, now)
            else:
                self._post(Received(message, now))

    def _greet(self, connection: Connection, message: AnyMessage, now: float) -> None:
        """The first message must be a Welcome that we can accept."""
        if not isinstance(message, Welcome):
            connection.close("protocol", "the first message was not a Welcome")
            return
        if self._fixed is None and message.cluster != self._expected:
            # Somebody else has taken over the address meanwhile.
            connection.close("cluster", f"this is {message.name} ({message.cluster}), not {self._expected}")
            return
        try:
            check_data_url(message.data_url)
        except ConfigError as error:
            connection.close("protocol", str(error))
            return
        self._welcomed = True
        self._joined = message.cluster
        log.info("joined %s (%s) at %s", message.name, message.cluster, connection.address)
        self._post(Connected(message, now))

    def closed(self, connection: Connection, reason: str) -> None:
        """See stream.Handler."""
        if connection is self._connection and self._session is not None and not self._session.done():
            self._session.set_result(self._goodbye.text if self._goodbye is not None else reason)


def check_data_url(url: str) -> None:
    """ConfigError unless this is a data port of this machine, or none at all."""
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise ConfigError(f"{url!r} is not the address of a data port")
    check_loopback(parts.hostname)


def _places(found: Found) -> str:
    """Where a cluster is, for people."""
    return ", ".join(
        f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address, port in found.addresses[:4]
    )
