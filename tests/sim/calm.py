"""A calm world: the real cores and the real codec in virtual time, without faults, to measure where work waits.

Every task's time is given by its kind. The processes in the slots are modelled as real ones are: they take what they are
given in order, read some of it ahead, which nobody gets back, and their answers are noticed together.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dcoord.core.core import Core
from dcoord.core.core import Settings as CoordinatorSettings
from dcoord.core.effects import Send
from dcoord.core.events import DefinitionsChanged
from dcoord.core.events import Events as CoordinatorEvents
from dcoord.core.events import Received as CoreReceived
from dcoord.core.records import Record, Restored
from dcoord.core.rights import Principal
from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    Assign,
    HelloClient,
    HelloWorker,
    Recall,
    Returned,
    Submit,
    Welcome,
)
from districomp.model import Machine
from districomp.taskdef import Definition, Requires, with_digest
from dworker.core import Settings, WorkerCore
from dworker.events import (
    AttemptsEnded,
    Connected,
    Received,
    SendMessage,
    StartAttempts,
    TakeBack,
    TakenBack,
)
from dworker.events import Events as WorkerEvents
from tests.sim.loop import Loop

LATENCY_S: Final = 0.0005
COMMIT_S: Final = 0.001
GATHER_S: Final = 0.001
TakesS = Callable[[int], float]
"""A task's time by its index."""


class Lane:
    """One slot's process."""

    def __init__(self) -> None:
        self.read: deque[int] = deque()
        """Leases that the process has, the running one first."""
        self.given: deque[int] = deque()
        self.ended: list[tuple[int, float, float]] = []
        self.began = 0.0
        self.is_due = False


class Host:
    """A worker: its core, its lanes and what is measured of them. `speed`: tasks take so many times less."""

    def __init__(self, world: "CalmWorld", number: int, slots: int, speed: float, read_ahead: int) -> None:
        self.world, self.number, self.speed, self.read_ahead = world, number, speed, read_ahead
        self.core = WorkerCore(Settings(slots, 1))
        self.lanes = [Lane() for _ in range(slots)]
        self.tasks: dict[int, tuple[int, int]] = {}
        self.decoder = wire.Decoder()
        self.decoder.greeted()
        self._wake_at = float("inf")

    # ---- the core's side ----

    def turn(self, events: list[WorkerEvents]) -> None:
        """Events through the core."""
        now = self.world.loop.now
        effects = self.core.handle_batch(events, now) + self.core.tick(now)
        out = bytearray()
        for effect in effects:
            if isinstance(effect, SendMessage):
                out += wire.encode(effect.message)
                if isinstance(effect.message, Returned):
                    for lease in effect.message.leases:
                        del self.tasks[lease]
            elif isinstance(effect, StartAttempts):
                self._start(effect)
            elif isinstance(effect, TakeBack):
                self._take_back(effect)
        if out:
            self.world.loop.after(LATENCY_S, self.world.hear, self.number, bytes(out))
        self._arm()

    def _arm(self) -> None:
        due = self.core.deadline()
        if due is not None and max(due, self.world.loop.now) < self._wake_at:
            self._wake_at = max(due, self.world.loop.now) + 1e-6
            self.world.loop.at(self._wake_at, self._wake)

    def _wake(self) -> None:
        if self.world.loop.now >= self._wake_at:
            self._wake_at = float("inf")
            self.turn([])

    def hear(self, data: bytes) -> None:
        """Bytes of the coordinator."""
        now = self.world.loop.now
        events: list[WorkerEvents] = []
        for message in self.decoder.receive(data):
            if isinstance(message, Assign):
                for place, index in enumerate(message.indexes):
                    self.tasks[message.lease + place] = message.job, index
            events.append(Connected(message, now, "calm") if isinstance(message, Welcome) else Received(message, now))
        self.turn(events)

    # ---- the processes ----

    def _start(self, effect: StartAttempts) -> None:
        lane = self.lanes[effect.slot]
        lane.given.extend(effect.leases)
        if not lane.read:
            self._read(effect.slot)
            self._begin(effect.slot)

    def _read(self, slot: int) -> None:
        lane = self.lanes[slot]
        while lane.given and len(lane.read) < self.read_ahead:
            lane.read.append(lane.given.popleft())

    def _begin(self, slot: int) -> None:
        lane = self.lanes[slot]
        lane.began = self.world.loop.now
        job, index = self.tasks[lane.read[0]]
        self.world.note_start(job, index, self)
        self.world.loop.after(self.world.takes[job](index) / self.speed, self._end, slot)

    def _end(self, slot: int) -> None:
        lane, now = self.lanes[slot], self.world.loop.now
        lane.ended.append((lane.read.popleft(), lane.began, now))
        if not lane.read:
            self._read(slot)
        if lane.read:
            self._begin(slot)
        if not lane.is_due:
            lane.is_due = True
            self.world.loop.after(GATHER_S if lane.read else 0.0, self._tell, slot)

    def _tell(self, slot: int) -> None:
        lane = self.lanes[slot]
        lane.is_due = False
        rows, lane.ended = lane.ended, []
        leases = [lease for lease, _, _ in rows]
        for lease in leases:
            del self.tasks[lease]
        self.turn([AttemptsEnded(slot, leases, [e for _, _, e in rows], started=[b for _, b, _ in rows])])

    def _take_back(self, effect: TakeBack) -> None:
        lane = self.lanes[effect.slot]
        back = [lease for lease in effect.leases if lease in lane.given]
        lane.given = deque(lease for lease in lane.given if lease not in back)
        if back:
            self.world.loop.after(0.0, self.turn, [TakenBack(effect.slot, back, [b""] * len(back))])

    # ---- what is measured ----

    def work_s(self) -> float:
        """How long this machine is busy with what waits here, a slot."""
        takes, running = self.world.takes, [lane.read[0] for lane in self.lanes if lane.read]
        over = [lease for lane in self.lanes for lease, _, _ in lane.ended]
        total = sum(takes[job](index) for job, index in self.tasks.values())
        total -= sum(takes[job](index) for job, index in map(self.tasks.__getitem__, running + over))
        return total / self.speed / len(self.lanes)

    def idle_slots(self) -> int:
        """Slots without anything to do."""
        return sum(not lane.read for lane in self.lanes)

    def waiting(self) -> int:
        """Tasks here that nothing runs."""
        return len(self.tasks) - sum(len(lane.ended) + bool(lane.read) for lane in self.lanes)


class CalmWorld:
    """A coordinator, machines, and jobs of tasks whose times are known."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.takes: dict[int, TakesS] = {}
        self.machines: list[Host] = []
        self.started_at: dict[tuple[int, int], float] = {}
        self.ran_on: dict[int, int] = {}
        self.decoders: dict[int, wire.Decoder] = {}
        self.core = Core(
            CoordinatorSettings("calm", "calm", 15.0, insecure=True), Restored(1, "calm", {}, [], [], 0), 0.0
        )
        self._inbox: list[CoordinatorEvents] = []
        self._is_busy = False
        self._wake_at = float("inf")
        self._accepted: list[int] = []
        self.idle_since: dict[tuple[int, int], float] = {}
        self.idle_s_max = 0.0
        self.work_s_max = 0.0
        self.recalls = 0

    # ---- the coordinator ----

    def hear(self, peer: int, data: bytes) -> None:
        """Bytes of a machine."""
        for message in self.decoders[peer].receive(data):
            self._inbox.append(CoreReceived(peer, message, self.loop.now, "127.0.0.1"))
        self._turn()

    def _say(self, peer: int, message: AnyMessage, principal: Principal) -> None:
        self._inbox.append(CoreReceived(peer, message, self.loop.now, "127.0.0.1", principal=principal))
        self._turn()

    def _turn(self) -> None:
        if self._is_busy:
            return
        batch, self._inbox = self._inbox, []
        effects = self.core.handle_batch(batch, self.loop.now) + self.core.tick(self.loop.now)
        self._is_busy = True
        delay_s = COMMIT_S if any(isinstance(effect, Record) for effect in effects) else 0.0
        self.loop.after(delay_s, self._committed, effects)

    def _committed(self, effects: list[Any]) -> None:
        self._is_busy = False
        out: dict[int, bytearray] = {}
        for effect in effects:
            if isinstance(effect, Send):
                self.recalls += isinstance(effect.message, Recall)
                if isinstance(effect.message, Accepted):
                    self._accepted.append(effect.message.job)
                out.setdefault(effect.peer, bytearray()).extend(wire.encode(effect.message))
        for peer, data in out.items():
            if peer <= len(self.machines):
                self.loop.after(LATENCY_S, self.machines[peer - 1].hear, bytes(data))
        if self._inbox:
            self._turn()
        due = self.core.deadline()
        if due is not None and max(due, self.loop.now) < self._wake_at:
            self._wake_at = max(due, self.loop.now)
            self.loop.at(self._wake_at, self._wake)

    def _wake(self) -> None:
        if self.loop.now >= self._wake_at:
            self._wake_at = float("inf")
            self._turn()

    # ---- who is there ----

    def join(self, slots: int = 1, speed: float = 1.0, read_ahead: int = 1, labels: tuple[str, ...] = ()) -> Host:
        """One more machine. `read_ahead`: so many tasks its processes have read and not begun, and the one that runs."""
        number = len(self.machines) + 1
        machine = Host(self, number, slots, speed, read_ahead)
        self.machines.append(machine)
        self.decoders[number] = wire.Decoder()
        self.decoders[number].greeted()
        name = f"w{number}"
        hello = HelloWorker(PROTOCOL_VERSION, "", name, name, slots, Machine(labels=list(labels)), number)
        self._say(number, hello, Principal("worker", identity=name, name=name))
        return machine

    def submit(self, count: int, takes: TakesS, *, runner: str = "stream", labels: tuple[str, ...] = ()) -> int:
        """A job; its number."""
        name = f"d{len(self.takes)}"
        fields: dict[str, Any] = {"runner": runner, "argv": ["x"], "requires": Requires(labels=labels)}
        definition = with_digest(Definition(name=name, description="", digest="", **fields))
        definitions = {**self.core.definitions, name: definition}
        self._inbox.append(DefinitionsChanged(definitions))
        admin = Principal("admin", user="calm")
        self._say(900, HelloClient(PROTOCOL_VERSION, "calm"), admin)
        job = len(self.takes) + 1
        self.takes[job] = takes
        self._say(900, Submit(7, definition=name, request_id="", params={}, count=count, numbers=(0, 1)), admin)
        return job

    # ---- time ----

    def note_start(self, job: int, index: int, machine: Host) -> None:
        """A task begins."""
        assert (job, index) not in self.started_at, f"task {job}.{index} runs twice"
        self.started_at[job, index] = self.loop.now
        self.ran_on[machine.number] = self.ran_on.get(machine.number, 0) + 1

    def run(self, until: float = 1e9, look_s: float = 0.001) -> float:
        """Until all jobs have ended; the time. Looks at every machine so often."""
        assert self.loop.run(until, lambda: self._look() or self._is_over(), look_s)
        return self.loop.now

    def run_for(self, seconds: float, look_s: float = 0.001) -> None:
        """Let so much time pass."""
        self.loop.run(self.loop.now + seconds, lambda: self._look() or False, look_s)

    def _is_over(self) -> bool:
        return len(self._accepted) == len(self.takes) and not self.core.active

    def _look(self) -> bool:
        """Nothing should wait anywhere while a slot that could run it is idle."""
        now = self.loop.now
        queued = sum(job.leasable for job in self.core.active.values())
        waits = queued + sum(machine.waiting() for machine in self.machines)
        for machine in self.machines:
            self.work_s_max = max(self.work_s_max, machine.work_s())
            for slot, lane in enumerate(machine.lanes):
                key = machine.number, slot
                if lane.read or not waits:
                    self.idle_since.pop(key, None)
                else:
                    self.idle_s_max = max(self.idle_s_max, now - self.idle_since.setdefault(key, now))
        return False
