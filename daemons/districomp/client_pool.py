"""A client's connections to one coordinator: found once, pooled, and made again after a restart.

Owns in which order places are tried, and the patience. Must not know what a request means, nor use asyncio.
"""

import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

from districomp.addresses import reached_url
from districomp.client_address import Address, given_addresses
from districomp.client_link import Link, remaining_s
from districomp.client_socket import BrokenOffError, LinkLostError
from districomp.client_trust import Notice, Trust
from districomp.errors import DistricompError, NotAllowedError, RefusedError, TrustError, UnreachableError
from districomp.tokens import cluster_id

IDLE_LINKS_MAX: Final = 4
PAUSE_S_MAX: Final = 2.0
FIRST_S: Final = 3.0
"""How long a coordinator is waited for that took our first connection and broke it off: it is being restarted."""
FIND_S: Final = 3.0
"""How long mDNS is asked where a cluster is that is no longer where it was."""
LOSSES_MAX: Final = 16
"""So many connections that break before an answer are no restart, but something the coordinator does not bear."""

LOOPBACK: Final = "127.0.0.1"

T = TypeVar("T")


class DataPlace(NamedTuple):
    """The data port: its URL ('' if there is none yet), and whom to believe there (authorities in DER, none: plain HTTP)."""

    url: str
    cluster: str
    authorities: list[bytes]


class LinkPool:
    """Connections to one coordinator, one a request that is under way; safe to use from several threads.

    The first connection is tried once, but for one that is broken off. Once there was one, a lost connection is waited for with backoff,
    for ever or until the caller's deadline, and the request is made again.
    """

    def __init__(
        self,
        coordinator: str | None,
        program: str,
        notice: Notice | None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._program = program
        self._notice = notice or _silent
        self._trust = Trust(token_file, self._notice)
        self._idle: deque[Link] = deque()
        self._known: Address | None = None
        self._clusters: list[str] = []
        self._newest: Link | None = None
        """The connection that was given back last."""
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with contextlib.suppress(IndexError):  # another thread may be quicker
            while True:
                self._idle.pop().close()

    def take(self, deadline: float | None = None, losses: int = 0) -> Link:
        """A connection, to be given back or closed; `losses` says how many broke in a row without an answer.

        UnreachableError if there never was one; TimeoutError at `deadline` (monotonic).
        """
        if losses >= LOSSES_MAX:
            raise DistricompError(
                f"the coordinator at {self._known} broke off the connection {losses} times instead of answering; see its log"
            )
        if self._process != os.getpid():
            # Forked: what is idle here is the parent's, who would be given our answers and we his.
            self._process = os.getpid()
            self.close()
        if losses:
            self.close()
            return self._return(deadline, losses - 1)
        while self._idle:
            try:
                link = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if not link.is_stale:
                return link
            link.close()
        if self._known is None:
            return self._first()
        try:
            return self._open(self._known)
        except LinkLostError:
            return self._return(deadline, 0)

    def give(self, link: Link) -> None:
        """Return a connection on which nothing is under way."""
        self._newest = link
        if len(self._idle) >= IDLE_LINKS_MAX:
            link.close()
        else:
            self._idle.append(link)

    def call(self, ask: Callable[[Link], T], deadline: float | None = None, *, once: bool = False) -> T:
        """Run `ask` on a connection, again on another one whenever that broke; what does not bear that is for `once`."""
        losses = 0
        link = self.take(deadline)
        while True:
            try:
                answer = ask(link)
            except LinkLostError:
                link.close()
                if once:
                    raise
                losses += 1
                link = self.take(deadline, losses)
            except RefusedError:
                self.give(link)
                raise
            except BaseException:
                link.close()
                raise
            else:
                self.give(link)
                return answer

    def data_place(self, anew: bool) -> DataPlace:
        """The data port, as the coordinator last said; `anew`: as it says now."""
        place = _place_of(self._newest) if self._newest is not None and not anew else None
        if place is None or not place.url:
            self.close()
            place = self.call(_place_of)
        return place

    def _first(self) -> Link:
        tried: list[DistricompError] = []
        for address in self._candidates():
            try:
                if address.is_tls:
                    self._trust.need_identity([(address.host, address.port)])
                return self._open_patiently(address)
            except (LinkLostError, NotAllowedError, TrustError, UnreachableError) as error:
                tried.append(error)
        said = "; ".join(dict.fromkeys(str(error) for error in tried))
        for fault in tried:
            # Somebody was there: that he is not allowed to be, or we are not, is what there is to be done about.
            if not isinstance(fault, LinkLostError | UnreachableError):
                raise type(fault)(said) from fault
        raise UnreachableError(f"no coordinator reachable: {said}. {self._advice()}")

    def _candidates(self) -> Iterator[Address]:
        """Where it may be, in the order of trying: what somebody named, where it was before, where mDNS says it is."""
        yield from given_addresses(self._coordinator)
        if self._coordinator or _names_untrusted(os.environ.get("DISTRICOMP_COORDINATOR", "")):
            return
        before = self._trust.addresses()
        for host, port in before:
            yield Address(host=host, port=port)
        identity = self._trust.known()
        if identity is None and not self._trust.has_token():
            return
        if identity is None:
            self._trust.need_identity([])
            identity = self._trust.known()
            before = []
        if identity is None:
            return
        from districomp.client_enrol import found

        for host, port in found(identity.clusters[0], FIND_S):
            if (host, port) not in before:
                yield Address(host=host, port=port)

    def _advice(self) -> str:
        if self._coordinator or os.environ.get("DISTRICOMP_COORDINATOR"):
            return "Check the address, and that dcoord runs there"
        if self._trust.known() is not None:
            return "Check that dcoord runs, or say where: DISTRICOMP_COORDINATOR=HOST:PORT"
        return (
            "Start dcoord, or join the cluster of another machine: dctl join TOKEN "
            "(DISTRICOMP_RUNTIME_DIR for another local one)"
        )

    def _open_patiently(self, address: Address) -> Link:
        """Connect for the first time; again for FIRST_S if somebody was there and broke it off."""
        patient_until = 0.0
        while True:
            try:
                return self._open(address)
            except BrokenOffError as error:
                patient_until = patient_until or time.monotonic() + FIRST_S
                if time.monotonic() >= patient_until:
                    if error.is_proven:
                        # A server refuses a certificate by ending the connection; asyncio's without a word.
                        raise TrustError(
                            f"{error}, as it does to a certificate that has expired or is none of its own; "
                            "its log says why. Join again: dctl join TOKEN"
                        ) from error
                    raise
            except LinkLostError:
                if time.monotonic() >= patient_until:
                    raise
            time.sleep(random.uniform(0.05, 0.2))

    def _return(self, deadline: float | None, attempt: int) -> Link:
        """Connect again, however long it takes; `attempt` is how patient to be at the start."""
        assert self._known is not None
        failures = 0
        away = False
        while True:
            pause_s = random.uniform(0, min(PAUSE_S_MAX, 0.05 * 2 ** min(attempt, 10)))
            left_s = remaining_s(deadline)
            time.sleep(pause_s if left_s is None else min(pause_s, left_s))
            try:
                link = self._open(self._known)
            except LinkLostError as error:
                attempt += 1
                failures += 1
                if failures == 3:
                    self._notice(f"coordinator away, waiting for it ({error})")
                    away = True
                continue
            if away:
                self._notice("coordinator is back")
            return link

    def _open(self, address: Address) -> Link:
        link = Link(address, self._program, self._trust, self._notice)
        clusters = [link.welcome.cluster, *map(cluster_id, link.authorities)]
        if self._clusters and not any(cluster in self._clusters for cluster in clusters):
            link.close()
            raise DistricompError(
                f"at {address} there is now another cluster ({link.welcome.cluster}, before: {self._clusters[0]}); "
                "what was asked for is not there"
            )
        if address.is_tls:
            self._trust.reached(address.host, address.port)
        self._known = address
        self._clusters = clusters
        self._newest = link
        return link


def _place_of(link: Link) -> DataPlace:
    """The data port as a connection knows it. An address of every interface means where we reached the coordinator."""
    url = reached_url(link.data_url, link.address.host or LOOPBACK)
    return DataPlace(url, link.welcome.cluster, link.authorities)


def _names_untrusted(coordinator: str) -> bool:
    """Whether this is a path or a plain address: whoever means that one does not mean the cluster that he has joined."""
    return "/" in coordinator


def _silent(_text: str) -> None:
    """The notice of a library that keeps quiet."""
