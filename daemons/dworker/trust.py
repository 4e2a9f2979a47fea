"""Who this worker is, and how it becomes somebody: its identity; else in turn a join token, its own machine's control
socket, a person who compares words. Without any of them it contacts nobody.

Owns the identity's folder and watches what may change it. Must not know what a connection is used for.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from districomp import systemd
from districomp.dial import Address
from districomp.enrolment import Applicant, enrol, renewed
from districomp.errors import ConfigError, DistricompError, RefusedError, TokenError
from districomp.identity import ADDRESSES_MAX, Identity, IdentityFolder, Stamp
from districomp.messages import Enrolled
from districomp.tokens import TOKEN_CHARS_MAX, JoinToken, is_cluster_id, parse_token
from dworker import standing
from dworker.search import Search

if TYPE_CHECKING:
    from districomp.keys import NewKey

log = logging.getLogger(__name__)

POLL_S: Final = 0.25
"""How often it is looked whether somebody put an identity, a token or a socket there."""
FIND_S: Final = 3.0
"""How long the cluster of a token is looked for before the next way is tried."""
REFUSED_S: Final = 30.0
"""A token that was refused is tried again so seldom, unless it changes."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 15.0

Doubt = Literal["", "revoked", "invalid", "lost"]
"""Why an identity will not do: a person took it back, its certificate is not accepted, its cluster is not there."""
_Stamp = tuple[int, ...] | None
T = TypeVar("T")


class Ways(msgspec.Struct, frozen=True):
    """How this worker may come to an identity. `cluster`: as configured, a name or an id; only an id pins."""

    token_file: Path | None
    socket: Path
    cluster: str = ""

    @property
    def pin(self) -> str:
        """The id of the only cluster that may be joined, '' if any."""
        return self.cluster.lower() if is_cluster_id(self.cluster) else ""


class Trust:
    """The worker's identity. `on_replaced` is called when somebody else has put another one in place."""

    def __init__(
        self,
        folder: IdentityFolder,
        ways: Ways,
        search: Search,
        applicant: Applicant,
    ) -> None:
        self.on_replaced: Callable[[], None] = lambda: None
        self.changed = asyncio.Event()
        """Set when something on disk may lead further than before."""
        self._folder = folder
        self._ways = ways
        self._search = search
        self._applicant = applicant
        self._identity: Identity | None = None
        self._stamp: Stamp | None = None
        self._loaded = False
        self._doubt: Doubt = ""
        self._doubted: tuple[_Stamp, ...] = ()
        self._seen: tuple[_Stamp, ...] = ()
        self._asked: _Stamp = None
        self._token_refused: tuple[_Stamp, float] = None, 0.0
        self._failures = 0
        self._said: dict[str, str] = {}
        self._writing = asyncio.Lock()

    # ---- for the link ----

    async def get(self) -> Identity:
        """Who we are; waits until somebody has let us in. ConfigError if the identity on disk is damaged.

        One that is in doubt is given back as well, when there is no other way: the doubt may be over.
        """
        while True:
            self.changed.clear()
            self._look()
            identity = self._identity
            if identity is not None and not self._doubt:
                return identity
            fresh = await self.unless_changed(self._round())
            if fresh is not None:
                await self._keep(fresh)
                return fresh
            if identity is not None and identity is self._identity:
                return identity
            await self._pause()

    @property
    def identity(self) -> Identity | None:
        """Who we are just now."""
        return self._identity

    def doubt(self, identity: Identity, why: Doubt) -> None:
        """The coordinator does not accept this identity, or is not to be found."""
        if self._is_current(identity) and not self._doubt:
            self._doubt = why
            self._doubted = self._stamps()

    async def accepted(self, identity: Identity, address: Address) -> None:
        """The coordinator accepts this identity, at this address, which is remembered."""
        async with self._writing:
            known = self._identity
            if known is None or not self._is_current(identity):
                return
            self._doubt, self._failures, self._said = "", 0, {}
            if known.addresses[:1] != [address]:
                addresses = list(dict.fromkeys([address, *known.addresses]))[:ADDRESSES_MAX]
                await self._replace(msgspec.structs.replace(known, addresses=addresses))

    async def renewed(self, identity: Identity, enrolled: Enrolled, key: "NewKey") -> Identity | None:
        """Take the certificate that was given for this key in place of this identity's. TrustError if it does not fit.

        None if we have become somebody else meanwhile.
        """
        async with self._writing:
            known = self._identity
            if known is None or not self._is_current(identity):
                return None
            fresh = renewed(known, enrolled, key)
            await self._replace(fresh)
            return fresh

    def _is_current(self, identity: Identity) -> bool:
        return self._identity is not None and self._identity.certificate == identity.certificate

    async def _replace(self, identity: Identity) -> None:
        """Keep what we have become, unless somebody else has put another identity there meanwhile."""
        try:
            kept = await asyncio.to_thread(self._folder.update, identity, self._stamp)
        except ConfigError as error:
            log.error("%s; what changed is lost when this worker ends", error)
            kept = True
        if kept:
            self._written(identity)

    def _written(self, identity: Identity) -> None:
        """We have written this ourselves: it is no news. What else has changed meanwhile is."""
        self._identity, self._stamp = identity, self._folder.stamp()
        self._seen = (self._stamp, *self._seen[1:])

    async def watch(self) -> None:
        """Look for changes, for ever."""
        self._seen = self._stamps()
        while True:
            await asyncio.sleep(POLL_S)
            now = self._stamps()
            if now == self._seen or self._writing.locked():
                continue
            self._seen = now
            self.changed.set()
            self._search.changed.set()
            if self._folder.stamp() != self._stamp:
                self.on_replaced()

    # ---- on disk ----

    def _stamps(self) -> tuple[_Stamp, ...]:
        """Differs when somebody put something there."""
        return self._folder.stamp(), _stamp(self._ways.token_file), _stamp(self._ways.socket)

    def _look(self) -> None:
        """Load the identity if it is new."""
        stamp = self._folder.stamp()
        if self._loaded and stamp == self._stamp:
            return
        try:
            identity = self._folder.load()
        except ConfigError as error:
            if not self._loaded:
                raise
            self._say("identity", f"{error}; going on with the one from before")
            self._stamp = stamp
            return
        self._stamp, self._loaded = stamp, True
        self._doubt, self._failures, self._said = "", 0, {}
        self._identity = identity if identity is not None and self._is_ours(identity) else None
        if self._identity is not None:
            log.info(
                "worker %s of cluster %s (%s)", self._identity.identity, self._identity.name, self._identity.cluster
            )

    def _is_ours(self, identity: Identity) -> bool:
        pin = self._ways.pin
        if identity.role != "worker":
            self._say("identity", f"the identity in {self._folder.path} is of role {identity.role}: not using it")
            return False
        if pin and pin not in (identity.pin, identity.cluster, *identity.clusters):
            self._say(
                "identity",
                f"the identity in {self._folder.path} is of cluster {identity.cluster}, but `cluster` in dworker.yaml "
                f"says {pin}: not using it",
            )
            return False
        return True

    async def _keep(self, identity: Identity) -> None:
        async with self._writing:
            try:
                await asyncio.to_thread(self._folder.save, identity)
            except ConfigError as error:
                log.error("%s; this worker has to join again when it is started again", error)
            self._written(identity)
            self._doubt, self._failures, self._said = "", 0, {}
        how = {"token": "a join token", "local": "the control socket", "person": "a person's approval"}
        log.info("enrolled in %s (%s) by %s", identity.name, identity.cluster, how[identity.source])
        systemd.status(f"enrolled in {identity.name}")

    # ---- the ways ----

    async def _round(self) -> Identity | None:
        """Try every way there is, once. Does not come back while there is none, or while a person is waited for."""
        news = tuple(now != then for now, then in zip(self._stamps(), self._doubted, strict=False))
        # Taken back by a person: only what somebody has put there since may count.
        token_counts = self._doubt != "revoked" or news[1]
        there_are_ways = False
        socket = _stamp(self._ways.socket)
        # A cluster that is not found may be there all the same: one question an owner of the socket.
        socket_counts = self._doubt != "revoked" and not (self._doubt == "lost" and socket == self._asked)
        token = self._read_token() if token_counts else None
        if token is not None:
            there_are_ways = True
            identity = await self._by_token(token)
            if identity is not None:
                return identity
        if socket is not None and socket_counts:
            there_are_ways = True
            self._asked = socket
            identity = await self._by_socket()
            if identity is not None:
                return identity
        if self._doubt in ("revoked", "lost"):
            return None
        if self._ways.pin:
            return await self._by_person(self._ways.pin, FIND_S if there_are_ways or self._doubt else None)
        if not there_are_ways and not self._doubt:
            self._say("join", "this worker belongs to no cluster and contacts nobody; run: dctl join TOKEN")
            await asyncio.Event().wait()
        return None

    def _read_token(self) -> JoinToken | None:
        """The token of the token file, None if there is none that is good for anything."""
        file = self._ways.token_file
        if file is None:
            return None
        try:
            with file.open("rb") as opened:
                data = opened.read(TOKEN_CHARS_MAX + 64)
            token = parse_token(data.decode("utf-8", "replace"))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say("token", f"the token file {file} cannot be read: {error.strerror}")
            return None
        except TokenError as error:
            self._say("token", f"{file}: {error}")
            return None
        if token.role != "worker":
            self._say("token", f"the token in {file} is for role {token.role}; make one with: dctl token create worker")
            return None
        if self._ways.pin not in ("", token.cluster):
            self._say("token", f"the token in {file} is of cluster {token.cluster}, `cluster` says {self._ways.pin}")
            return None
        return token

    async def _by_token(self, token: JoinToken) -> Identity | None:
        stamp = _stamp(self._ways.token_file)
        refused, until = self._token_refused
        if stamp == refused and time.monotonic() < until:
            return None
        addresses = await self._search.addresses([token.cluster], [], FIND_S)
        if not addresses:
            self._say("token", f"the cluster {token.cluster} of the token is not found by mDNS; looking on")
            return None
        try:
            return await self._enrol(addresses, token=token)
        except RefusedError as error:
            self._token_refused = stamp, time.monotonic() + REFUSED_S
            self._say("token", f"the join token in {self._ways.token_file} is refused: {error}")
        except DistricompError as error:
            self._say("token", f"not enrolled by the token in {self._ways.token_file}: {error}")
        return None

    async def _by_socket(self) -> Identity | None:
        try:
            return await self._enrol(self._ways.socket, cluster=self._ways.pin)
        except DistricompError as error:
            self._say("socket", f"not enrolled by the control socket: {error}")
        return None

    async def _by_person(self, pin: str, wait_s: float | None) -> Identity | None:
        addresses = await self._search.addresses([pin], [], wait_s)
        if not addresses:
            return None
        try:
            return await self._enrol(addresses, cluster=pin, on_pending=lambda words: self._show(addresses, words))
        except DistricompError as error:
            self._failures = max(self._failures, 7 if isinstance(error, RefusedError) else 0)
            self._say("person", f"not let in by a person: {error}")
        return None

    async def _enrol(self, where: list[Address] | Path, **how: Any) -> Identity:
        role, worker, name, slots, machine = self._applicant
        return await enrol(where, role=role, worker=worker, name=name, slots=slots, machine=machine, **how)

    def _show(self, addresses: list[Address], words: str) -> None:
        text = standing.pending(addresses, words)
        systemd.status(text)
        log.warning(
            "this worker %s; compare them with: dctl worker list, then: dctl worker approve %s",
            text,
            self._applicant.name,
        )

    # ---- waiting ----

    async def unless_changed(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Its outcome; None, and an end to it, when something changes on disk meanwhile."""
        task, change = asyncio.ensure_future(work), asyncio.ensure_future(self.changed.wait())
        try:
            await asyncio.wait({task, change}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            change.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, DistricompError):
                    await task

    async def _pause(self) -> None:
        """Full jitter, ended by whatever changes."""
        self._failures += 1
        bound = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 10))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(bound / 2, bound)):
                await self.changed.wait()

    def _say(self, about: str, text: str) -> None:
        """Warn of it, once as long as it stays the same; the latest is what systemd shows."""
        systemd.status(text)
        if self._said.get(about) != text:
            self._said[about] = text
            log.warning("%s", text)


def certificate_end(identity: Identity) -> float:
    """When an identity's certificate ends, in Unix seconds by the coordinator's clock."""
    from cryptography import x509  # a tenth of a second, for what is hardly ever asked

    return x509.load_pem_x509_certificate(identity.certificate).not_valid_after_utc.timestamp()


def _stamp(path: Path | None) -> _Stamp:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
