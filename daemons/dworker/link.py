"""The connection to the coordinator, kept: made, lost, made again, for ever.

Owns when who is tried. Where to go is `search.py`, who we are `trust.py`, one connection `session.py`.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec.structs import replace

from districomp import dial
from districomp.addresses import reached_url
from districomp.config import check_loopback
from districomp.dial import Address
from districomp.errors import ConfigError, TrustError, UnreachableError
from districomp.identity import Identity
from districomp.messages import HelloWorker, Message, Welcome
from districomp.stream import Connection
from dworker.events import Connected, Disconnected, Events
from dworker.grants import Grants, Place
from dworker.search import Search
from dworker.session import Owner, Session, Target, identifiers
from dworker.trust import Trust, certificate_end

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 15.0
STEADY_S: Final = 5.0
"""A connection that lasted so long was a good one: the next backoff begins anew."""
LOST_S: Final = 3.0
"""The cluster that this machine's own socket let us into, if it is not found by then, may be another one by now."""
BROKEN_OFF_MAX: Final = 10
BROKEN_OFF_ENDED_MAX: Final = 3
"""So many connections in a row that are broken off before a Welcome are a certificate that is refused, for the alert that
says so may be lost on its way: fewer if by our own clock it has ended, more if that does not say so. An overloaded
coordinator breaks off connections too, and who joins anew for that loses its work."""
_LASTING_CODES: Final = ("version", "cluster", "replaced", "protocol", "revoked", "not_allowed", "insecure")
"""Goodbyes that will most likely be said again: no hurry to hear them."""
_INVALID: Final = ("not_allowed", "expired")


class Link:
    """Keeps a connection; `post` brings events to the core, `place` is called with where the data port is.

    trust: None for `insecure`; then `any_network` says whether to go to other machines.
    """

    def __init__(
        self,
        hello: HelloWorker,
        search: Search,
        trust: Trust | None,
        *,
        post: Callable[[Events], None],
        place: Callable[[Place], None],
        any_network: bool = False,
    ) -> None:
        self.grants = Grants(self._ask)
        self._hello = hello
        self._search = search
        self._trust = trust
        self._post = post
        self._place = place
        self._any_network = any_network
        self._session: Session | None = None
        self._data_url = ""
        self._joined = ""  # the id of the cluster that this process belongs to, as it was first
        self._ids: list[str] = []  # every id that it had since
        self._context: tuple[Identity, ssl.SSLContext] | None = None
        self._broken_off = 0
        if trust is not None:
            trust.on_replaced = self._identity_replaced

    # ---- for the daemon ----

    def send(self, message: Message) -> None:
        """Send to the coordinator; nothing happens without a connection."""
        if self._session is not None:
            self._session.send(message)

    def reset(self, code: str, text: str) -> None:
        """End the connection with a Goodbye; another will be made."""
        if self._session is not None:
            log.warning("closing the connection: %s", text)
            self._session.close(code, text)

    def use_data(self, url: str) -> None:
        """The coordinator says where its data port is."""
        self._data_url = url
        self._tell_place()

    async def run(self) -> None:
        """Connect, and connect again, until cancelled. ConfigError if mDNS is needed and cannot be used."""
        watching = asyncio.create_task(self._trust.watch()) if self._trust is not None else None
        failures = 0
        try:
            while True:
                session = await self._attempt(await self._prepare())
                lasted = session is not None and await self._stay(session)
                failures = 0 if lasted else failures + 1
                await self._pause(failures, session)
        finally:
            if watching is not None:
                watching.cancel()
            if self._session is not None:
                self._session.close("stopping", "the worker stops")
            await self._search.close()

    # ---- before a connection ----

    async def _prepare(self) -> tuple[Target, list[Address]]:
        """Who is wanted, and where it may be; waits until there is somebody, and until we are somebody."""
        if self._trust is None:
            wanted = self._joined or self._hello.cluster
            addresses, cluster = await self._search.unproven(wanted, self._any_network)
            return Target(self._hello, cluster=cluster), addresses
        while True:
            identity = await self._trust.get()
            # A cluster that this machine's own socket let us into may have been made anew since.
            wait_s = LOST_S if identity.source == "local" else None
            looking = self._search.addresses(identity.clusters, identity.addresses, wait_s)
            found = await self._trust.unless_changed(looking)
            if found:
                return Target(replace(self._hello, worker=identity.identity), identity), found
            if found is not None:
                self._trust.doubt(identity, "lost")

    async def _attempt(self, wanted: tuple[Target, list[Address]]) -> Session | None:
        """The first connection to one who proves to be the right coordinator; None if there is none."""
        target, addresses = wanted
        owner = Owner(self._post, self._welcomed, self._tell_place, self.grants, self._trust)
        options: dict[str, Any] = {}
        if target.identity is not None:
            from districomp.tls import check_coordinator, server_name

            name = server_name(target.identity.cluster)
            options = {"ssl": self._tls(target.identity), "server_hostname": name}
            options["ssl_handshake_timeout"] = dial.CONNECT_S

        async def one(host: str, port: int) -> Session:
            session = Session(target, owner)
            await asyncio.get_running_loop().create_connection(lambda: Connection(session), host, port, **options)
            if options and session.connection is not None:
                try:
                    check_coordinator(session.connection.certificate, session.connection.address)
                except TrustError:
                    session.close()
                    raise
            return session

        try:
            address, session = await dial.first(addresses, one, Session.close)
        except UnreachableError as error:
            log.debug("no coordinator answers: %s", error)
            return None
        except TrustError as error:
            log.warning("not connecting: %s", error)
            return None
        session.greet(address)
        return session

    def _tls(self, identity: Identity) -> ssl.SSLContext:
        from districomp.tls import client_context

        if self._context is None or self._context[0] is not identity:
            context = client_context(identity.authorities, identity.certificate, identity.key)
            self._context = identity, context
        return self._context[1]

    # ---- one connection ----

    async def _stay(self, session: Session) -> bool:
        """Until the connection ends; whether it was a good one."""
        self._session = session
        begun = time.monotonic()
        reason = await session.ended
        self._session = None
        if session.welcomed:
            log.warning("lost the coordinator at %s: %s", session.place, reason)
            self._post(Disconnected())
        elif session.goodbye is not None:
            log.warning("the coordinator at %s refuses this worker: %s", session.place, reason)
        elif session.identity is not None:
            log.warning("the coordinator at %s breaks off the connection: %s", session.place, reason)
        else:
            log.info("no coordinator at %s: %s", session.place, reason)
        if session.identity is not None and self._trust is not None:
            self._judge(session, session.identity, reason, self._trust)
        # One that ends soon again and again (the two do not understand each other) must not be tried at full speed.
        return session.welcomed and time.monotonic() - begun >= STEADY_S

    def _judge(self, session: Session, identity: Identity, reason: str, trust: Trust) -> None:
        """What a connection's end says of our identity."""
        code = session.goodbye.code if session.goodbye is not None else ""
        self._broken_off = 0 if session.welcomed or code else self._broken_off + 1
        if code == "revoked":
            trust.doubt(identity, "revoked")
            log.warning("this worker was sent away; if it should come back, give it a new token: dctl join TOKEN")
        elif code in _INVALID:
            trust.doubt(identity, "invalid")
        elif not session.welcomed and not code and (_is_alert(reason) or self._is_refused(identity)):
            trust.doubt(identity, "invalid")
            log.warning("its certificate seems not to be accepted (expired?); if that goes on, run: dctl join TOKEN")

    def _is_refused(self, identity: Identity) -> bool:
        """Whether it is time to doubt a certificate of which nobody says a word."""
        if self._broken_off < BROKEN_OFF_ENDED_MAX:
            return False
        return self._broken_off >= BROKEN_OFF_MAX or certificate_end(identity) < time.time()

    async def _pause(self, failures: int, session: Session | None) -> None:
        """Full jitter: anything between nothing and the bound, so that a thousand workers do not come at once."""
        bound = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 10))
        pause_s = random.uniform(0, bound)
        if session is not None and session.goodbye is not None and session.goodbye.code in _LASTING_CODES:
            pause_s = random.uniform(BACKOFF_MAX_S / 2, BACKOFF_MAX_S)
        if failures == 0 or failures % 10 == 1:
            log.info("reconnecting in %.1f s", pause_s)
        self._search.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._search.changed.wait()

    def _welcomed(self, session: Session, welcome: Welcome, now: float) -> None:
        """It is the right one: the core goes on from here."""
        self._session = session
        ids = identifiers(session.identity, welcome)
        if not any(one in ids for one in self._ids):
            self._joined, self._ids = welcome.cluster, []
        self._ids = list(dict.fromkeys([*self._ids, *ids]))
        self._broken_off = 0
        self._post(Connected(welcome, now, self._joined))

    def _identity_replaced(self) -> None:
        """Somebody has put another identity in place of ours."""
        self.reset("stopping", "there is another identity for this worker")

    def _ask(self, message: Message) -> bool:
        return self._session is not None and self._session.send(message)

    # ---- the data port ----

    def _tell_place(self) -> None:
        """Say where the data port is and how it proves that it is ours."""
        session = self._session
        if session is None:
            return
        try:
            place = data_place(self._data_url, session, self._any_network)
        except ConfigError as error:
            self.reset("protocol", str(error))
        else:
            self._place(place)


def data_place(url: str, session: Session, any_network: bool) -> Place:
    """The data port of a session's coordinator. ConfigError unless it is one that this worker may use."""
    if not url:
        return Place("")
    wanted = "http" if session.identity is None else "https"
    try:
        parts = urlsplit(reached_url(url, session.host))
        host = parts.hostname if parts.port is not None else None
    except ValueError:
        host = None
    if parts.scheme != wanted or not host:
        raise ConfigError(f"{url!r:.200} is not the address of a data port ({wanted}://HOST:PORT)")
    if session.identity is None:
        if not any_network:
            check_loopback(host)
        return Place(parts.geturl())
    from districomp.tls import server_name

    identity = session.identity
    return Place(parts.geturl(), tuple(identity.authorities), server_name(identity.cluster))


def _is_alert(reason: str) -> bool:
    """Whether a connection was ended by a TLS alert (RFC 8446, 6.2): before a Welcome, that is a refused certificate."""
    return "alert" in reason.lower()
