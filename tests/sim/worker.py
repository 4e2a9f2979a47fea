"""A worker in the simulator: a machine with a lasting id, and the processes that live on it one after the other.

The core is the real one; the connection, the runner and the uploads around it are simulated.
"""

from typing import Final

from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Authorities,
    Enrolled,
    Goodbye,
    HelloWorker,
    Refused,
    Renew,
    Returned,
    Welcome,
)
from districomp.model import Blob, Machine
from dworker.core import Settings, WorkerCore
from dworker.events import (
    AttemptsEnded,
    Connected,
    Discard,
    Disconnected,
    Effects,
    Events,
    Exit,
    Received,
    Reset,
    SendMessage,
    Shutdown,
    StartAttempts,
    StopAttempts,
    TakeBack,
    TakenBack,
    Upload,
    Uploaded,
)
from tests.sim.coordinator import Coordinator
from tests.sim.guest import Guest, Papers
from tests.sim.loop import Clock
from tests.sim.network import End
from tests.sim.promise import promise
from tests.sim.runner import Runner
from tests.sim.stage import Stage

GREETING_S: Final = 5.0
HAND_BACKS_MAX: Final = 20
"""So often a stopping worker may have to hand something back: a few connections, a few batches on their way."""
HEEDS_AUTHORITIES: Final = 0.8
"""So many renew at once when there is a new authority, as they should."""
BACKOFF_S_FIRST: Final = 0.2
BACKOFF_S_MAX: Final = 5.0


class Host:
    """A machine. `worker` is the id that it wants, and has until somebody gives it another."""

    def __init__(self, stage: Stage, coordinator: Coordinator, worker: str, slots: int) -> None:
        self.stage = stage
        self.coordinator = coordinator
        self.papers = Papers(worker)
        self.slots = slots
        self.clock = Clock(stage.loop, stage.random.uniform(0.0, 1e6))
        self.process: WorkerProcess | None = None
        self.is_retired = False
        self.is_forgetful = False
        """It does not renew its certificate."""

    def start(self) -> None:
        """Start a worker process, if none runs."""
        if self.process is None and not self.is_retired:
            self.process = WorkerProcess(self)
            self.process.dial()

    def crash(self, down_s: float) -> None:
        """The process is gone with its tasks; sometimes the whole machine, so that nobody hears of it."""
        process, self.process = self.process, None
        if process is not None:
            process.die()
            if process.end is not None:
                is_seen = self.stage.random.random() > self.stage.rates.stay_unaware
                process.end.cut(is_seen_here=False, is_seen_there=is_seen)
        self.stage.loop.after(down_s, self.start)


class WorkerProcess:
    """One life of a worker."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.stage = stage = host.stage
        self.number = stage.random.getrandbits(63)
        # Above all that an earlier process used, as a serial that begins with the time is.
        first_serial = (int(stage.loop.now * 1e6) << 12) + stage.random.getrandbits(12)
        self.core = WorkerCore(Settings(host.slots, first_serial))
        self.runner = Runner(stage, self.number, host.clock, host.slots, self._ended)
        self.guest = Guest(stage, host.papers, host.slots, self.dial)
        self.is_alive = True
        self.end: End | None = None
        self.is_welcome = False
        self.asleep_until = 0.0
        self.away_until = 0.0
        self.stays_away_for_report = False
        """The network keeps it away until it has something to report."""
        self._decoder = wire.Decoder()
        self._pending: list[Events] = []
        self._failures = 0
        self._dials = 0
        self._renewals = 0
        self._wake_at = float("inf")
        self._uploads: dict[int, None] = {}
        self._handed_back = 0

    def die(self) -> None:
        """Nothing of this process happens any more."""
        self.is_alive = self.runner.is_alive = False
        self.guest.stop()

    @property
    def shown(self) -> bytes:
        """Its certificate."""
        return self.host.papers.certificate

    def shut_down(self) -> None:
        """SIGTERM."""
        self._turn([Shutdown()])

    # ---- the connection ----

    def dial(self) -> None:
        """Try to connect; first of all to become somebody."""
        if not self.is_alive:
            return
        if not self.host.papers.certificate:
            self.guest.dial()
            return
        if self.stage.loop.now < self.away_until or (self.stays_away_for_report and not self.core.unacknowledged):
            self.stage.loop.at(max(self.away_until, self.stage.loop.now + 0.5), self.dial)
            return
        self.stays_away_for_report = False
        self.stage.network.dial(self)

    def on_open(self, end: End) -> None:
        """The connection is made: greet."""
        if not self.is_alive:
            end.cut(is_seen_here=False, is_seen_there=True)
            return
        self.end, self.is_welcome = end, False
        self._decoder = wire.Decoder()
        self._decoder.greeted()
        self._dials += 1
        self.stage.loop.after(GREETING_S, self._give_up_greeting, self._dials)
        name, slots = self.host.papers.worker, self.host.slots
        end.send(wire.encode(HelloWorker(PROTOCOL_VERSION, "", name, name, slots, Machine(), self.number)))

    def on_refused(self) -> None:
        """Nobody is there, or what we show proves nothing any more."""
        authority = self.host.coordinator.authority
        if authority.principal(self.shown, self.host.coordinator.clock.now()) is None:
            self._lose_certificate(has_ended=True)
        self._back_off()

    def on_bytes(self, end: End, data: bytes) -> None:
        """Bytes of the coordinator."""
        if not self.is_alive or end is not self.end:
            return
        if self.stage.loop.now < self.asleep_until:
            self.stage.loop.at(self.asleep_until, self.on_bytes, end, data)
            return
        now = self.host.clock.now()
        events: list[Events] = []
        is_over = False
        for message in self._decoder.receive(data):
            if isinstance(message, Goodbye):
                is_over = True
                self._on_goodbye(message)
            event = self._event(message, now)
            if event is not None:
                events.append(event)
        self._turn(events)
        if is_over and end is self.end:
            end.close()
            self.on_closed(end)

    def _event(self, message: AnyMessage, now: float) -> Events | None:
        if self.is_welcome:
            if isinstance(message, Enrolled | Authorities | Refused):
                self._on_papers(message)
                return None
            return Received(message, now)
        if isinstance(message, Welcome):
            self.is_welcome = True
            self._renew_in(message.renew_s)
            self._failures = 0
            if self.core.unacknowledged:
                self.stage.tally.count("late result")
            return Connected(message, now, "sim")
        assert isinstance(message, Goodbye), f"a worker was greeted with {message}"
        return None

    def _on_goodbye(self, message: Goodbye) -> None:
        """Whoever does not belong here any more has to ask again, as somebody without a certificate."""
        papers = self.host.papers
        if message.code in ("revoked", "not_allowed", "expired"):
            is_current = self.host.coordinator.authority.is_current(papers.certificate)
            self.stage.oracle.members.dismissed(papers.worker, message.code, is_current=is_current)
            self._lose_certificate(has_ended=message.code == "expired")

    def _lose_certificate(self, *, has_ended: bool) -> None:
        self.host.papers.certificate = b""
        self.host.is_forgetful = False
        self.stage.tally.count("certificate ended", has_ended)

    def _on_papers(self, message: Enrolled | Authorities | Refused) -> None:
        """A new certificate came, or could not be had now, or there is a new authority to have one of."""
        match message:
            case Enrolled():
                promise(message.identity == self.host.papers.worker, f"a renewal makes {message.identity} of another")
                self.host.papers.certificate = message.certificate
                self._renew_in(message.renew_s)
            case Authorities():
                if self.stage.random.random() < HEEDS_AUTHORITIES:
                    self._renew_in(0.0)
            case Refused():
                promise(message.code == "degraded", f"a renewal is refused: {message.code}, {message.text}")
                self._renew_in(1.0)

    def _renew_in(self, seconds: float) -> None:
        self._renewals += 1
        self.stage.loop.after(seconds, self._renew, self._renewals, self._dials)

    def remember(self) -> None:
        """Renew the certificate, if that was forgotten."""
        if self.host.is_forgetful:
            self.host.is_forgetful = False
            self._renew_in(0.0)

    def _renew(self, renewal: int, dial: int) -> None:
        if self.host.is_forgetful:
            return
        if (
            self.is_alive
            and self.is_welcome
            and self.end is not None
            and (renewal, dial) == (self._renewals, self._dials)
        ):
            self.end.send(wire.encode(Renew(1, self.stage.random.randbytes(16))))

    def on_closed(self, end: End) -> None:
        """The connection broke, or was closed."""
        if not self.is_alive or end is not self.end:
            return
        if self.stage.loop.now < self.asleep_until:
            self.stage.loop.at(self.asleep_until, self.on_closed, end)
            return
        self.end = None
        if self.is_welcome:
            self.is_welcome = False
            self._turn([Disconnected()])
        self._back_off()

    def _give_up_greeting(self, dial: int) -> None:
        if self.is_alive and dial == self._dials and self.end is not None and not self.is_welcome:
            end = self.end
            end.close()
            self.on_closed(end)

    def _back_off(self) -> None:
        limit_s = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        self.stage.loop.after(self.stage.random.uniform(0.0, limit_s), self.dial)

    # ---- a turn ----

    def _ended(self, event: AttemptsEnded | TakenBack) -> None:
        self._turn([event])

    def _turn(self, events: list[Events]) -> None:
        """What happened goes through the core; while the machine sleeps it waits."""
        if not self.is_alive:
            return
        self._pending += events
        if self.stage.loop.now < self.asleep_until:
            self.stage.loop.at(self.asleep_until, self._turn, [])
            return
        batch, self._pending = self._pending, []
        now = self.host.clock.now()
        effects = self.core.handle_batch(batch, now)
        effects += self.core.tick(now)
        if self.stage.random.random() < self.stage.check_rate:
            self.core.check()
        self._carry_out(effects)
        self.arm()

    def arm(self) -> None:
        """Have a turn at the core's deadline."""
        due = self.core.deadline()
        if due is None or not self.is_alive:
            return
        at = max(self.host.clock.true(due), self.stage.loop.now)
        if at < self._wake_at:
            self._wake_at = at
            self.stage.loop.at(at, self._wake)

    def _wake(self) -> None:
        if self.stage.loop.now < self._wake_at:
            return
        self._wake_at = float("inf")
        due = self.core.deadline()
        if due is not None and self.host.clock.true(due) > self.stage.loop.now + 1e-9:
            self.arm()
        elif due is not None:
            self._turn([])

    def _carry_out(self, effects: list[Effects]) -> None:
        out = bytearray()
        reset: Reset | None = None
        for effect in effects:
            match effect:
                case SendMessage():
                    if isinstance(effect.message, Returned) and self.core.stopping:
                        self._handed_back += 1
                    out += wire.encode(effect.message)
                case StartAttempts():
                    self.runner.start(effect)
                case StopAttempts():
                    self.runner.stop(effect)
                case TakeBack():
                    self.runner.take_back(effect)
                case Upload():
                    self._uploads[effect.lease] = None
                    self._upload(effect.lease, effect.blob)
                case Discard():
                    for lease in effect.leases:
                        self._uploads.pop(lease, None)
                case Reset():
                    reset = effect
                case Exit():
                    self.stage.loop.after(0.0, self._exit)
        if out:
            assert self.end is not None and self.is_welcome, "the core sends without a connection"
            self.end.send(bytes(out))
        if reset is not None and self.end is not None:
            assert reset.code != "protocol", f"{self.host.papers.worker}: {reset.text}"
            end = self.end
            end.send(wire.encode(Goodbye(reset.code, reset.text)))
            end.close()
            self.stage.loop.after(0.0, self.on_closed, end)

    def _exit(self) -> None:
        if not self.is_alive:
            return
        promise(
            self._handed_back <= HAND_BACKS_MAX,
            f"{self.host.papers.worker} was given work {self._handed_back} times while it stopped",
        )
        assert not self.runner.busy, "a worker exits while an attempt runs"
        self.die()
        if self.end is not None:
            self.end.close()
        self.host.process = None
        self.stage.loop.after(self.stage.random.uniform(0.1, 5.0), self.host.start)

    def _upload(self, lease: int, blob: Blob) -> None:
        """The data port takes a while, and is down with the coordinator."""
        self.stage.loop.after(self.stage.random.uniform(0.01, 0.5), self._uploaded, lease, blob)

    def _uploaded(self, lease: int, blob: Blob) -> None:
        if not self.is_alive or lease not in self._uploads:
            return
        if self.host.coordinator.process is None:
            self._upload(lease, blob)
            return
        del self._uploads[lease]
        self._turn([Uploaded(lease)])
