"""The worker's decisions: which lease starts in which slot, what is reported, kept, handed back. Pure: events in, effects out.

Owns slots, attempts in hand, reports without an acknowledgement, the heartbeat and what is said after
a reconnection. Must not know sockets, processes, files or the clock: time is an argument.
"""

from typing import Final

import msgspec

from districomp.messages import (
    Ack,
    Ask,
    Assign,
    DataAt,
    Define,
    Goodbye,
    Has,
    Heartbeat,
    JobSpec,
    Message,
    Recall,
    Reports,
    Resend,
    Returned,
    Started,
    Stop,
    Welcome,
)
from districomp.model import Blob, Item
from dworker import placing
from dworker.events import (
    AttemptsEnded,
    Connected,
    Discard,
    Disconnected,
    Effects,
    Events,
    Exit,
    Look,
    Looked,
    Received,
    Reset,
    SendMessage,
    Shutdown,
    StopAttempts,
    TakenBack,
    Upload,
    Uploaded,
    UseData,
)
from dworker.gather import Gathering
from dworker.hold import Chunk, Queue, Slot, Spooled, Work, held_rows, spans
from dworker.known import Known
from dworker.reports import HeldRow, inventories, one_row, spooled_leases
from dworker.seals import Seals, Span

STARTED_S: Final = 0.05
"""An attempt that runs this long is named in a Started."""
HELD_MAX: Final = 16_384
"""A coordinator that gives more leases than this is out of its mind."""
LOOKS_MAX: Final = 10_000
"""So many programs may be asked after before the first answer."""
HAND_BACK_S: Final = 5.0
"""When stopping: how long reports wait for their acknowledgement once no attempt runs."""


class Settings(msgspec.Struct, frozen=True):
    """What the core is told at its start. `first_serial`: above all that an earlier process of this worker used. `lacking`: why not.

    `can_queue`: a slot takes processes that follow one another.
    """

    slots: int
    first_serial: int
    isolation: tuple[str, ...] = ("none", "rlimit")
    lacking: dict[str, str] = {}
    can_queue: bool = False


class WorkerCore:
    """A worker, without its body."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connected = False
        self.stopping = False
        self._cluster = ""
        self._offset_s = 0.0
        self._lease_s = 0.0
        self._heard = 0.0
        self._beat = 0.0
        self._resetting = False
        self._exit_at: float | None = None
        self._exited = False
        self._known = Known(settings.isolation, settings.lacking, can_queue=settings.can_queue)
        self._queue = Queue()
        self._seals = Seals()
        self._slots = [Slot(number) for number in range(settings.slots)]
        self._spooled: dict[int, Spooled] = {}
        self._ended = Gathering()
        self._unacknowledged: dict[int, Reports] = {}
        self._serial = settings.first_serial
        self._looks = 0
        self._effects: list[Effects] = []

    # ---- the interface ----

    def handle_batch(self, batch: list[Events], now: float) -> list[Effects]:
        """Take in what happened, in its order; what is to be done about it at once."""
        for event in batch:
            match event:
                case AttemptsEnded():
                    self._on_ended(event)
                case TakenBack():
                    self._on_taken_back(event, now)
                case Received():
                    self._heard = max(self._heard, event.at)
                    if self.connected and not self._resetting:
                        self._on_message(event.message, now)
                case Uploaded():
                    self._on_uploaded(event.lease)
                case Looked():
                    self._looks -= len(event.programs)
                    self._send(Has(event.programs, event.found))
                case Connected():
                    self._on_connected(event.welcome, event.at, event.cluster or event.welcome.cluster)
                case Disconnected():
                    self.connected = self._resetting = False
                case Shutdown():
                    self._on_shutdown()
        return self._take_effects()

    def tick(self, now: float) -> list[Effects]:
        """Start what can start, report what ended, and see to the timers."""
        self._effects += placing.relieve(self._slots, now)
        self._place(now)
        if self._ended.is_due(now, self._queue.count):
            self._report()
        if self.connected:
            self._announce(now)
            self._keep_alive(now)
        if self.stopping:
            self._try_exit(now)
        return self._take_effects()

    def deadline(self) -> float | None:
        """When `tick` must be called even if nothing happens; None: never."""
        times = []
        if self.connected and not self._resetting:
            times += [self._beat, self._heard + self._lease_s]
            times += [slot.since + STARTED_S for slot in self._slots if self._unannounced(slot)]
        times += [placing.relief_due(slot) for slot in self._slots if placing.may_be_relieved(slot)]
        if self._exit_at is not None and not self._exited:
            times.append(self._exit_at)
        if self._ended.due is not None:
            times.append(self._ended.due)
        return min(times, default=None)

    @property
    def running(self) -> int:
        """Slots in use."""
        return sum(1 for slot in self._slots if slot.hand)

    @property
    def queued(self) -> int:
        """Leases held that have not started."""
        return self._queue.count

    @property
    def unacknowledged(self) -> int:
        """Reports that wait for their Ack."""
        return len(self._unacknowledged)

    # ---- the connection ----

    def _on_connected(self, welcome: Welcome, at: float, cluster: str) -> None:
        self._report()  # to be sent with the others: it must be named before the inventory is complete
        if self._cluster and cluster != self._cluster:
            self._forget_cluster()
        self._cluster = cluster
        self.connected, self._resetting = True, False
        self._offset_s = welcome.now - at
        self._lease_s = welcome.lease_s
        self._heard = at
        self._beat = at + welcome.lease_s / 3
        self._known.start_anew()
        self._effects.append(UseData(welcome.data_url))
        self._seals.prune(self._spans())
        for sealed in self._seals.proofs(welcome.fence):
            self._send(sealed)
        for reports in self._unacknowledged.values():
            self._send(reports)
        for inventory in inventories(self._held()):
            self._send(inventory)

    def _forget_cluster(self) -> None:
        """What another cluster leased is of no use here: end it, and tell nobody."""
        for slot in self._slots:
            if slot.hand and not slot.disowned:
                slot.disowned = True
                self._stop(slot, list(slot.hand), "worker_stopped")
        if self._spooled:
            self._effects.append(Discard(list(self._spooled)))
        self._discard(list(self._unacknowledged.values()))
        self._queue.clear()
        self._seals.clear()
        self._known.clear()
        self._spooled.clear()
        self._ended.clear()
        self._unacknowledged.clear()

    def _held(self) -> dict[int, list[HeldRow]]:
        return held_rows(self._queue, self._slots, self._spooled, self._offset_s)

    def _spans(self) -> list[Span]:
        """Where the leases are that are held, or whose reports are not acknowledged."""
        told = self._ended.leases + [reports.leases for reports in self._unacknowledged.values()]
        held = spans(self._queue, self._slots, self._spooled)
        return held + [(min(leases), max(leases)) for leases in told if leases]

    def _keep_alive(self, now: float) -> None:
        if now - self._heard >= self._lease_s:
            self._reset("silent", f"nothing was heard of the coordinator for {self._lease_s:g} s")
        elif now >= self._beat:
            self._send(Heartbeat())
            self._beat = now + self._lease_s / 3

    def _reset(self, code: str, text: str) -> None:
        if not self._resetting:
            self._resetting = True
            self._effects.append(Reset(code, text))

    # ---- the coordinator's messages ----

    def _on_message(self, message: Message, now: float) -> None:
        match message:
            case Assign():
                self._on_assign(message, now)
            case Ack():
                known = [self._unacknowledged.pop(serial, None) for serial in message.serials]
                self._discard([reports for reports in known if reports is not None])
            case Heartbeat() | Goodbye():
                pass
            case Define():
                self._known.define(message)
            case JobSpec():
                fault = self._known.introduce(message)
                if fault:
                    self._reset("protocol", fault)
            case Recall():
                self._on_recall(message.leases)
            case Stop():
                self._on_stop(message.leases, now)
            case Resend():
                for reports in self._unacknowledged.values():
                    self._send(reports)
            case DataAt():
                self._effects.append(UseData(message.url))
            case Ask():
                self._on_ask(message)
            case _:
                self._reset("protocol", f"a worker does not expect a {type(message).__name__}")

    def _on_ask(self, ask: Ask) -> None:
        if self._looks + len(ask.programs) > LOOKS_MAX:
            self._reset("protocol", f"more than {LOOKS_MAX} programs are asked after at once")
            return
        self._looks += len(ask.programs)
        self._effects.append(Look(ask.programs))

    def _on_assign(self, assign: Assign, now: float) -> None:
        work, count = self._known.get(assign.job), len(assign.indexes)
        if work is None:
            self._reset("protocol", f"a lease is of job {assign.job}, which was not sent")
        elif len(assign.attempts) not in (0, count) or len(assign.items) not in (0, count):
            self._reset("protocol", "the columns of an Assign differ in length")
        elif not 0 <= assign.lease < 2**63:
            self._reset("protocol", f"{assign.lease} is no lease")
        elif self._queue.count + count > HELD_MAX:
            self._reset("protocol", f"more than {HELD_MAX} leases wait here")
        elif count:
            chunk = Chunk(work, assign)
            self._seals.add(assign)
            if self._seals.is_full:
                self._seals.prune([*self._spans(), chunk.span])
            if work.problem:
                self._fail_unstarted([(work, *row) for row in chunk.rows()], now, "not_started", work.problem.encode())
            else:
                work.held += count
                self._queue.add(chunk)
                if self.stopping:
                    self._send(Returned(self._queue.clear()))

    def _on_recall(self, leases: list[int]) -> None:
        rows = self._queue.withdraw(leases)
        self._send(Returned([lease for _, lease, _, _ in rows]))

    def _on_stop(self, leases: list[int], now: float) -> None:
        self._fail_unstarted(self._queue.withdraw(leases), now, "cancelled", b"")
        for slot in self._slots:
            if slot.hand and not slot.disowned:
                running = [lease for lease in leases if lease in slot.hand]
                if running:
                    self._stop(slot, running, "cancelled")
        for lease in leases:
            if lease in self._spooled:
                self._give_up_upload(lease, "cancelled")

    def _stop(self, slot: Slot, leases: list[int], reason: str) -> None:
        # They may be on their way back from the slot: then nobody there will end them.
        slot.stopping.update(dict.fromkeys(leases, reason))
        self._effects.append(StopAttempts(slot.number, leases, reason))

    # ---- attempts ----

    def _place(self, now: float) -> None:
        """Give waiting leases to slots, unless uploads pile up."""
        if self._queue.count and len(self._spooled) < max(4, 2 * len(self._slots)):
            self._effects += placing.fill(self._queue, self._slots, now)

    def _on_taken_back(self, event: TakenBack, now: float) -> None:
        """Attempts that did not begin wait here again, unless they were stopped meanwhile."""
        slot = self._slots[event.slot]
        work = slot.work
        assert work is not None and event.leases
        work.slowed()
        kept: list[tuple[int, int, int]] = []
        items: list[Item] = []
        for place, lease in enumerate(event.leases):
            row = lease, *slot.hand.pop(lease)
            if slot.disowned:
                continue
            if lease in slot.stopping:
                work.held -= 1
                self._fail_unstarted([(work, *row)], now, slot.stopping[lease], b"")
            else:
                kept.append(row)
                items += event.items[place : place + 1]
        if kept:
            self._queue.put_back(work, kept, items)
        if not slot.hand:
            slot.clear()

    def _on_ended(self, event: AttemptsEnded) -> None:
        slot = self._slots[event.slot]
        work = slot.work
        assert work is not None and event.leases
        rows = [slot.hand.pop(lease) for lease in event.leases]
        for lease in event.leases if slot.stopping else ():
            slot.stopping.pop(lease, None)
        slot.since = event.ended[-1]
        if not slot.disowned:
            self._keep(work, event, rows)
            starts = [time for time in event.started if time is not None]
            if len(starts) == len(rows):
                work.timed(len(rows), sum(event.ended) - sum(starts))
        if not slot.hand:
            slot.clear()

    def _keep(self, work: Work, event: AttemptsEnded, rows: list[tuple[int, int]]) -> None:
        """Attempts that ended: report them, but upload first what is too large for a report."""
        if any(isinstance(result, Blob) for result in event.results):
            for place, (index, attempt) in enumerate(rows):
                single = one_row(event, place)
                result = single.results[0]
                if isinstance(result, Blob):
                    self._spooled[event.leases[place]] = Spooled(work, index, attempt, single)
                    self._effects.append(Upload(event.leases[place], result))
                else:
                    self._add(work, single, [index], [attempt])
        else:
            self._add(work, event, [index for index, _ in rows], [attempt for _, attempt in rows])

    def _add(self, work: Work, event: AttemptsEnded, indexes: list[int], attempts: list[int]) -> None:
        work.held -= len(indexes)
        self._ended.add(work, event, indexes, attempts)

    def _fail_unstarted(self, rows: list[tuple[Work, int, int, int]], now: float, reason: str, why: bytes) -> None:
        for work, lease, index, attempt in rows:
            work.held += 1
            self._add(work, AttemptsEnded(-1, [lease], [now], [reason], stderr=[why]), [index], [attempt])

    def _on_uploaded(self, lease: int) -> None:
        spooled = self._spooled.pop(lease, None)
        if spooled is not None:
            self._add(spooled.work, spooled.event, [spooled.index], [spooled.attempt])

    def _give_up_upload(self, lease: int, reason: str) -> None:
        spooled = self._spooled.pop(lease)
        spooled.event.reasons, spooled.event.results = [reason], []
        self._add(spooled.work, spooled.event, [spooled.index], [spooled.attempt])
        self._effects.append(Discard([lease]))

    # ---- reports ----

    def _report(self) -> None:
        for reports in self._ended.take(self._serial, self._offset_s):
            self._serial += 1
            self._unacknowledged[reports.serial] = reports
            self._send(reports)

    def _unannounced(self, slot: Slot) -> bool:
        return bool(slot.hand) and not slot.disowned and slot.announced != slot.head()

    def _announce(self, now: float) -> None:
        """Name the attempts that run for a while by now."""
        leases, times = [], []
        for slot in self._slots:
            if slot.hand and now >= slot.since + STARTED_S and self._unannounced(slot):
                slot.announced = slot.head()
                leases.append(slot.announced)
                times.append(slot.since + self._offset_s)
        if leases:
            self._send(Started(leases, times))

    def _discard(self, acknowledged: list[Reports]) -> None:
        """Drop the spooled results of reports that nobody will ask for again."""
        leases = spooled_leases(acknowledged)
        if leases:
            self._effects.append(Discard(leases))

    # ---- stopping ----

    def _on_shutdown(self) -> None:
        if self.stopping:
            return
        self.stopping = True
        # Even when there are none: it says as well that this worker takes no more.
        self._send(Returned(self._queue.clear()))
        for slot in self._slots:
            if slot.hand and not slot.disowned:
                self._stop(slot, list(slot.hand), "worker_stopped")

    def _try_exit(self, now: float) -> None:
        """Exit when all is handed back and acknowledged, or HAND_BACK_S after the last attempt ended."""
        if self._exited or any(slot.hand for slot in self._slots):
            return
        if self._exit_at is None:
            self._exit_at = now + HAND_BACK_S
        late = now >= self._exit_at
        if late and self._spooled:
            for lease in list(self._spooled):
                self._give_up_upload(lease, "worker_stopped")
            self._report()
            self._exit_at, late = now + HAND_BACK_S, False
        if late or not (self._spooled or self._ended or self._unacknowledged):
            self._exited = True
            self._effects.append(Exit())

    # ---- the bottom ----

    def _send(self, message: Message) -> None:
        if self.connected and not self._resetting:
            self._effects.append(SendMessage(message))

    def _take_effects(self) -> list[Effects]:
        effects, self._effects = self._effects, []
        return effects

    def check(self) -> None:
        """Every invariant."""
        waiting = [(chunk.work, lease) for chunk in self._queue.chunks for lease, _, _ in chunk.rows()]
        hands = [(slot.work, lease) for slot in self._slots if not slot.disowned for lease in slot.hand]
        spooled = [(entry.work, lease) for lease, entry in self._spooled.items()]
        held = waiting + hands + spooled
        leases = [lease for _, lease in held]
        assert len(leases) == len(set(leases)), "a lease is held twice"
        assert len(waiting) == self._queue.count <= HELD_MAX, "the queue's count is wrong"
        for work in self._known:
            mine = sum(1 for other, _ in held if other is work)
            assert work.held == mine, f"job {work.job}: {work.held} held, {mine} found"
        for slot in self._slots:
            slot.check()
        serials = list(self._unacknowledged)
        assert serials == sorted(serials), "reports are out of order"
        assert all(self.settings.first_serial <= serial < self._serial for serial in serials), "a serial is made up"
        assert not (self.stopping and self._queue.count), "a stopping worker holds waiting leases"
        assert not self._effects, "effects were left behind"
