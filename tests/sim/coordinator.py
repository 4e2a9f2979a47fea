"""The coordinator in the simulator: the real core with a driver like the daemon's, a journal in memory, and its crashes.

The driver is that of docs/architecture.md: handle the batch, tick, commit, only then send. Everything that a
process has in memory is in `Process`, so that a crash is to drop it.
"""

from random import Random
from typing import Final

import msgspec

from dcoord.core.core import Core, Settings
from dcoord.core.effects import Close, Effect, ReadPayload, Rotate, Send, Sign
from dcoord.core.events import (
    AuthoritiesChanged,
    DefinitionsChanged,
    Degraded,
    Events,
    Gone,
    PayloadRead,
    Received,
    SpaceLeft,
)
from dcoord.core.records import OutcomeRecord, Record
from dcoord.core.rights import GUEST, Principal
from districomp import wire
from districomp.messages import (
    Assign,
    Authorities,
    CreateToken,
    Enrol,
    Enrolled,
    Goodbye,
    Message,
    OpenEnrolment,
    Renew,
    Reply,
    ResultRows,
    Results,
)
from districomp.model import QUEUED
from tests.sim.authority import Authority
from tests.sim.journal import CLUSTER, Journal
from tests.sim.loop import Clock
from tests.sim.network import End
from tests.sim.stage import Stage

ROWS_MAX: Final = 64
"""Rows in one answer to a client."""
GRANT_KEY: Final = b"the key of grants"
ROOMY_BYTES: Final = 1 << 40
FULL_BYTES: Final = 1 << 20


def draw_outage_s(random: Random, lease_s: float) -> float:
    """How long something is out of order: mostly a moment, sometimes longer than a lease."""
    return lease_s * (random.uniform(0.01, 0.2) if random.random() < 0.7 else random.uniform(0.5, 1.5))


def _tenderness(records: list[Record]) -> float:
    outcomes = [record.outcome for record in records if isinstance(record, OutcomeRecord)]
    if any(QUEUED in outcome.states for outcome in outcomes):
        return 1.0
    return 0.3 if outcomes else 0.1


class Peer:
    """One connection, as the coordinator has it."""

    __slots__ = ("decoder", "end", "is_greeted", "number", "principal")

    def __init__(self, number: int, end: End, principal: Principal) -> None:
        self.number = number
        self.end = end
        self.principal = principal
        self.decoder = wire.Decoder()
        self.is_greeted = False


class Coordinator:
    """The machine: what outlives a crash is here, the running process is `process`."""

    def __init__(self, stage: Stage, check_every: int) -> None:
        self.loop = stage.loop
        self.random = stage.random
        self.rates = stage.rates
        self.tally = stage.tally
        self.oracle = stage.oracle
        self.authority = Authority(stage.certificate_s)
        self.settings = Settings(CLUSTER, "sim", stage.lease_s, certificate_s=stage.certificate_s)
        self.clock = Clock(stage.loop, 1_000_000.0)
        self.journal = Journal()
        self.definitions = {name: profile.definition for name, profile in stage.profiles.items()}
        self.process: Process | None = None
        self.last_peer = 0
        self.check_every = check_every
        self.armed: list[str] = []
        """Faults that strike at the next commit."""
        self.slow_until = self.full_until = self.short_until = 0.0
        self.oracle.journal = self.journal

    def accept(self, end: End) -> "Process | None":
        """A connection comes in; None while no process runs, or if what is shown proves nothing."""
        principal: Principal | None = GUEST
        if isinstance(end.shown, Principal):
            principal = end.shown
        elif end.shown:
            principal = self.authority.principal(end.shown, self.clock.now())
        if self.process is None or principal is None:
            return None
        self.process.attach(end, principal)
        return self.process

    def start(self) -> None:
        """Start a process, if none runs."""
        if self.process is None:
            self.journal.begin()
            self.expire_authorities()
            self.process = Process(self)
            self.process.wake()

    def crash(self) -> None:
        """The process is gone, with all it had in memory; it comes back after a while."""
        process, self.process = self.process, None
        if process is None:
            return
        process.is_alive = False
        for peer in process.peers.values():
            peer.end.cut(is_seen_here=False, is_seen_there=self.random.random() > self.rates.stay_unaware / 4)
        self.loop.after(draw_outage_s(self.random, self.settings.lease_s), self.start)

    def strike(self, kind: str, records: list[Record]) -> bool:
        """Whether a fault that was armed strikes now: rather where it may hurt, at an outcome, most of all at a retry."""
        if kind not in self.armed or self.random.random() > _tenderness(records):
            return False
        self.armed.remove(kind)
        self.tally.count(kind)
        return True

    def jump_clock(self, by_s: float) -> None:
        """Somebody sets the clock."""
        self.clock.offset_s += by_s
        if self.process is not None:
            self.process.arm()

    def expire_authorities(self) -> None:
        """Drop those whose time is over, now and whenever another's is."""
        if self.authority.expire(self.clock.now()):
            self.feed(self.authorities())
        if len(self.authority.until) > 1:
            self.loop.at(max(self.clock.true(self.authority.until[-1]), self.loop.now + 0.1), self.expire_authorities)

    def authorities(self, rotated: tuple[int, int] | None = None) -> AuthoritiesChanged:
        """The authorities as they are, for the core."""
        return AuthoritiesChanged(self.authority.authorities, self.authority.until, GRANT_KEY, rotated)

    def feed(self, event: Events) -> None:
        """Something happens that is not of the network."""
        if self.process is not None:
            self.process.put(event)


class Process:
    """One life of the coordinator."""

    def __init__(self, home: Coordinator) -> None:
        self.home = home
        self.is_alive = True
        self.peers: dict[int, Peer] = {}
        self._numbers: dict[End, int] = {}
        self._inbox: list[Events] = []
        self._is_busy = False
        self._wake_at = float("inf")
        self._turns = 0
        self.core = self._new_core(0)

    def _new_core(self, next_lease: int) -> Core:
        home = self.home
        restored = home.journal.restore()
        core = Core(home.settings, restored, home.clock.now(), next_lease=next_lease)
        home.oracle.compare(core)
        free_bytes = FULL_BYTES if home.loop.now < home.short_until else ROOMY_BYTES
        self._inbox += [home.authorities(), DefinitionsChanged(dict(home.definitions)), SpaceLeft(free_bytes)]
        return core

    # ---- what comes in ----

    def attach(self, end: End, principal: Principal) -> None:
        """A new connection."""
        self.home.last_peer += 1
        self.peers[self.home.last_peer] = Peer(self.home.last_peer, end, principal)
        self._numbers[end] = self.home.last_peer

    def on_bytes(self, end: End, data: bytes) -> None:
        """Bytes of a peer, cut anywhere."""
        peer = self.peers.get(self._numbers.get(end, 0))
        if peer is None or not self.is_alive:
            return
        now = self.home.clock.now()
        for message in peer.decoder.receive(data):
            event = Received(peer.number, message, now, "127.0.0.1")
            if not peer.is_greeted:
                peer.is_greeted = True
                peer.decoder.greeted()
                event.principal = peer.principal
            if isinstance(message, Enrol):
                event.principal = peer.principal
            if isinstance(message, Enrol | Renew):
                event.spki = message.csr
            if isinstance(message, Enrol | CreateToken | OpenEnrolment):
                event.entropy = self.home.random.randbytes(16)
            self._inbox.append(event)
        self.wake()

    def on_closed(self, end: End) -> None:
        """A peer closed its connection, or it broke."""
        number = self._numbers.pop(end, 0)
        if self.peers.pop(number, None) is not None:
            self.put(Gone(number, self.home.clock.now()))

    def put(self, event: Events) -> None:
        """Something happens."""
        self._inbox.append(event)
        self.wake()

    def wake(self) -> None:
        """Have a turn as soon as the last one is over."""
        if not self._is_busy and self._wake_at > self.home.loop.now:
            self._wake_at = self.home.loop.now
            self.home.loop.at(self._wake_at, self._turn)

    def arm(self) -> None:
        """Have a turn at the core's deadline."""
        due = self.core.deadline()
        if due is not None and not self._is_busy:
            at = self.home.clock.true(due)
            if at < self._wake_at:
                self._wake_at = at
                self.home.loop.at(at, self._turn)

    # ---- a turn ----

    def _turn(self) -> None:
        home = self.home
        if not self.is_alive or self._is_busy or home.loop.now < self._wake_at:
            return
        self._wake_at = float("inf")
        batch, self._inbox = self._inbox, []
        now = home.clock.now()
        effects = self.core.handle_batch(batch, now)
        effects += self.core.tick(now)
        self._turns += 1
        if self._turns % home.check_every == 0:
            self.core.check()
            home.oracle.members.check_heard(self.core)
        records = [effect for effect in effects if isinstance(effect, Record)]
        if not records:
            self._send(batch, effects)
            return
        assert not self.core.degraded, f"a degraded core wants to write {records}"
        if home.strike("coordinator crash before commit", records):
            home.crash()
            return
        self._is_busy = True
        slow = home.loop.now < home.slow_until
        commit_s = home.random.uniform(0.5, 3.0) if slow else home.random.uniform(0.1, 1.0) * home.rates.commit_s
        home.loop.after(commit_s, self._committed, batch, records, effects)

    def _committed(self, batch: list[Events], records: list[Record], effects: list[Effect | Record]) -> None:
        home = self.home
        if not self.is_alive:
            return
        self._is_busy = False
        if home.strike("disk full", records):
            home.full_until = home.loop.now + draw_outage_s(home.random, home.settings.lease_s)
        if home.loop.now < home.full_until:
            self._degrade()
            return
        home.journal.commit(records)
        home.oracle.committed(records, self.core)
        if home.strike("coordinator crash before send", records):
            home.crash()
            return
        self._send(batch, effects)

    def _send(self, batch: list[Events], effects: list[Effect | Record]) -> None:
        """Carry the effects out, one write a connection; then serve the questions of the batch."""
        out: dict[int, bytearray] = {}
        closing: dict[int, Close] = {}
        for effect in effects:
            if isinstance(effect, Send):
                if effect.peer in self.peers and effect.peer not in closing:
                    if isinstance(effect.message, Assign):
                        self.home.oracle.members.assigned(self.peers[effect.peer].principal, self.core)
                    out.setdefault(effect.peer, bytearray()).extend(wire.encode(effect.message))
            elif isinstance(effect, Sign):
                self._extend(effect.peer)
                self.home.loop.after(self.home.random.uniform(0.0, 0.01), self._sign, effect)
            elif isinstance(effect, Rotate):
                self.home.loop.after(0.0, self._rotate, effect)
            elif isinstance(effect, Close):
                closing.setdefault(effect.peer, effect)
            elif isinstance(effect, ReadPayload):
                self.home.loop.after(self.home.random.uniform(0.0001, 0.01), self._read_payload, effect)
        self._answer(batch, out)
        for number, data in out.items():
            if number in self.peers:
                self.peers[number].end.send(bytes(data))
        for close in closing.values():
            self._close(close.peer, close.code, close.text)
        if self._inbox:
            self.wake()
        self.arm()

    def _answer(self, batch: list[Events], out: dict[int, bytearray]) -> None:
        answers: list[tuple[int, Message]] = [(peer, Reply(request, [])) for peer, request, _ in self.core.answers]
        self.core.answers.clear()
        received = [event for event in batch if isinstance(event, Received)]
        answers += [(event.peer, self._rows(event.message)) for event in received if isinstance(event.message, Results)]
        for number, message in answers:
            if number in self.peers:
                out.setdefault(number, bytearray()).extend(wire.encode(message))

    def _rows(self, question: Results) -> ResultRows:
        journal = self.home.journal
        packed = journal.rows[question.job].packed
        rows = packed[question.after : question.after + ROWS_MAX]
        after = question.after + len(rows)
        is_ended = question.job in journal.ends and after == len(packed)
        return ResultRows(question.request, rows, after, is_ended)

    def _read_payload(self, effect: ReadPayload) -> None:
        if self.is_alive:
            self.put(PayloadRead(effect.job, effect.first, self.home.journal.read_payload(effect.job, effect.first)))

    # ---- certificates ----

    def _extend(self, number: int) -> None:
        """Whoever has a certificate and is given another lives on by that."""
        peer = self.peers.get(number)
        if peer is not None and peer.principal.identity:
            expires, cluster = self.core.now + self.home.authority.certificate_s, self.core.settings.cluster
            peer.principal = msgspec.structs.replace(peer.principal, expires=expires, authority=cluster)

    def _sign(self, effect: Sign) -> None:
        """Make a certificate, a moment after what it is made for is on disk."""
        home, peer = self.home, self.peers.get(effect.peer)
        if not self.is_alive or peer is None:
            return
        home.oracle.members.signed(effect.identity, effect.role)
        certificate = home.authority.issue(effect.role, effect.identity, effect.name, home.clock.now())
        authorities = home.authority.authorities
        renew_s = 2 / 3 * home.authority.certificate_s
        peer.end.send(
            wire.encode(Enrolled(effect.request, effect.role, effect.identity, certificate, [], authorities, renew_s))
        )

    def _rotate(self, effect: Rotate) -> None:
        """A new authority is on disk before anybody hears of it; whoever is here should have its certificate."""
        home = self.home
        if not self.is_alive:
            return
        home.authority.rotate(effect.overlap_s, home.clock.now())
        home.tally.count("authority rotated")
        self.put(home.authorities((effect.peer, effect.request)))
        home.expire_authorities()
        news = wire.encode(Authorities(self.core.settings.cluster, "sim", home.authority.authorities))
        for number, peer in self.peers.items():
            if number in self.core.fleet.by_peer:
                peer.end.send(news)

    def _close(self, number: int, code: str, text: str) -> None:
        peer = self.peers.pop(number, None)
        if peer is not None:
            self._numbers.pop(peer.end, None)
            peer.end.send(wire.encode(Goodbye(code, text)))
            peer.end.close()
            self.put(Gone(number, self.home.clock.now()))

    # ---- a full disk ----

    def _degrade(self) -> None:
        """Nothing of the batch was sent: a new core on what is on disk, which refuses work until the disk takes it."""
        reason = "no space left on the simulated device"
        waiting, self._inbox = self._inbox, []
        self.core = self._new_core(self.core.next_lease)
        self._inbox += [Degraded(reason), *waiting]
        for number in list(self.peers):
            self._close(number, "degraded", reason)
        self._probe()
        self.wake()

    def _probe(self) -> None:
        if not self.is_alive:
            return
        if self.home.loop.now < self.home.full_until:
            self.home.loop.after(0.5, self._probe)
        else:
            self.put(Degraded(""))
