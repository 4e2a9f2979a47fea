"""Connections between the simulated processes: delay, any cutting of the bytes, lost tails, ends that notice nothing.

Knows bytes only. Each direction keeps its order, as TCP does; what is lost is always a tail.
"""

from collections import deque
from random import Random
from typing import Protocol

from dcoord.core.rights import Principal
from tests.sim.faults import Rates, Tally
from tests.sim.loop import Loop

GRAIN_S = 1e-6
"""Between two pieces of one write."""


Shown = bytes | Principal
"""A certificate (b'': none), or what the system says of whoever uses a local socket."""


class Owner(Protocol):
    """Whoever holds an end of a connection."""

    def on_bytes(self, end: "End", data: bytes) -> None:
        """Bytes arrived."""

    def on_closed(self, end: "End") -> None:
        """The connection is gone, as far as this end can tell."""


class Dialer(Owner, Protocol):
    """Whoever opens connections, and what it shows of itself."""

    @property
    def shown(self) -> "Shown":
        """A certificate, or the system's word on a local socket."""
        ...

    def on_open(self, end: "End") -> None:
        """The connection is made."""

    def on_refused(self) -> None:
        """Nobody listens there, or it cannot be reached."""


class Listener(Protocol):
    """Where connections are opened to."""

    def accept(self, end: "End") -> Owner | None:
        """Somebody connects: who holds this end; None: nobody listens."""


class End:
    """One side of a connection: what is written here arrives at `other`."""

    __slots__ = ("_due", "_flight", "_network", "delay_s", "is_cut", "is_open", "other", "owner", "shown")

    other: "End"
    owner: Owner
    shown: Shown
    """By whoever dialed."""

    def __init__(self, network: "Network", delay_s: float) -> None:
        self._network = network
        self.delay_s = delay_s
        self.is_open = True
        self.is_cut = False
        self._flight: deque[bytes] = deque()
        self._due = 0.0

    def send(self, data: bytes) -> None:
        """Write; into the void if the connection is cut, whether this end knows it or not."""
        if not self.is_open or self.is_cut or not data:
            return
        network = self._network
        self._flight.append(data)
        self._due = max(self._due, network.loop.now + network.delay(self))
        network.loop.at(self._due, self._arrive)

    def hold(self, delay_s: float) -> None:
        """What is written from now on takes so much longer."""
        self._due = max(self._due, self._network.loop.now + delay_s)

    def close(self) -> None:
        """Close in order: what was written arrives, then the other side notices. Our own owner hears nothing more."""
        if not self.is_open:
            return
        self.is_open = False
        if not self.is_cut:
            self._network.loop.at(max(self._due, self._network.loop.now + self.delay_s), self._hang_up)

    def cut(self, *, is_seen_here: bool, is_seen_there: bool) -> None:
        """Break the connection: a tail of what is on its way is lost, both ways.

        An end that does not see it stays open, until the system's own keep-alive ends it long after.
        """
        for end, is_seen in ((self, is_seen_there), (self.other, is_seen_here)):
            end.is_cut = True
            end._lose_tail()
            delay_s = end.delay_s if is_seen else self._network.rates.keepalive_s
            self._network.loop.at(max(end._due, self._network.loop.now) + delay_s, end._hang_up)

    def _lose_tail(self) -> None:
        left = self._network.random.randint(0, sum(map(len, self._flight)))
        kept: deque[bytes] = deque()
        for data in self._flight:
            if left > 0:
                kept.append(data[:left])
            left -= len(data)
        self._flight = kept

    def _arrive(self) -> None:
        if not self._flight:
            return
        data = self._flight.popleft()
        network = self._network
        if len(data) > 1 and network.random.random() < network.rates.split:
            cut = network.random.randrange(1, len(data))
            self._flight.appendleft(data[cut:])
            data = data[:cut]
            network.tally.count("split read")
            network.loop.after(GRAIN_S, self._arrive)
        if self.other.is_open:
            self.other.owner.on_bytes(self.other, data)

    def _hang_up(self) -> None:
        """The other side learns that the connection is gone."""
        if self._flight:
            self._network.loop.after(GRAIN_S, self._hang_up)
            return
        other = self.other
        if other.is_open:
            other.is_open = False
            other.owner.on_closed(other)


class Network:
    """Makes connections to the one listener."""

    def __init__(self, loop: Loop, random: Random, rates: Rates, tally: Tally) -> None:
        self.loop = loop
        self.random = random
        self.rates = rates
        self.tally = tally
        self.listener: Listener | None = None

    def dial(self, dialer: Dialer) -> None:
        """Open a connection; the dialer hears `on_open` or `on_refused` after a while."""
        self.loop.after(self.random.uniform(0.0001, self.rates.latency_s), self._connect, dialer)

    def _connect(self, dialer: Dialer) -> None:
        delay_s = self.random.uniform(0.00005, self.rates.latency_s)
        near, far = End(self, delay_s), End(self, delay_s)
        near.other, far.other, near.owner = far, near, dialer
        near.shown = far.shown = dialer.shown
        owner = self.listener.accept(far) if self.listener is not None else None
        if owner is None:
            dialer.on_refused()
            return
        far.owner = owner
        dialer.on_open(near)

    def delay(self, end: End) -> float:
        """How long the next write takes."""
        if self.rates.spike and self.random.random() < self.rates.spike:
            self.tally.count("long delay")
            return self.random.uniform(0.05, self.rates.spike_s)
        return end.delay_s
