"""The simulated body of a worker: runs attempts for drawn times in its slots, one after the other in each.

Stands where the real runners do: it hears StartAttempts and StopAttempts and answers AttemptsEnded. Tells the
oracle of each start and of each result that really came to be.
"""

from collections import deque
from collections.abc import Callable

import msgspec

from districomp.model import Blob
from dworker.events import AttemptsEnded, StartAttempts, StopAttempts, TakeBack, TakenBack
from tests.sim.loop import Clock
from tests.sim.oracle import Attempt
from tests.sim.profiles import Fate, draw_fate, result_of
from tests.sim.stage import Stage

GROUP_MAX = 8
"""So many attempts of a stream are reported together."""
TERM_S_MAX = 10.0


class Running(msgspec.Struct):
    """An attempt that runs."""

    attempt: Attempt
    began: float
    fate: Fate
    turn: int


class Lane:
    """One slot: what waits in it, what runs, and what ended and is not told yet."""

    def __init__(self) -> None:
        self.waiting: deque[Attempt] = deque()
        self.running: Running | None = None
        self.told_after = 1
        self.ended: list[tuple[Attempt, float, float, Fate]] = []


class Runner:
    """All slots of one worker process."""

    def __init__(
        self, stage: Stage, process: int, clock: Clock, slots: int, tell: Callable[[AttemptsEnded | TakenBack], None]
    ) -> None:
        self.loop = stage.loop
        self.random = stage.random
        self.oracle = stage.oracle
        self.tally = stage.tally
        self.profiles = stage.profiles
        self.process = process
        self.clock = clock
        self.lanes = [Lane() for _ in range(slots)]
        self.is_alive = True
        self._tell = tell
        self._turn = 0

    @property
    def busy(self) -> int:
        """How many attempts run."""
        return sum(lane.running is not None for lane in self.lanes)

    def start(self, effect: StartAttempts) -> None:
        """Run these in their slot, after what runs there."""
        assert 0 <= effect.slot < len(self.lanes), f"there is no slot {effect.slot}"
        lane = self.lanes[effect.slot]
        is_stream = effect.definition.runner == "stream"
        assert is_stream or (lane.running is None and len(effect.leases) == 1), "a slot runs two attempts at once"
        for place, lease in enumerate(effect.leases):
            attempt = Attempt(
                job=effect.job,
                index=effect.indexes[place],
                number=effect.attempts[place] if effect.attempts else 1,
                lease=lease,
                item=effect.items[place] if effect.items else None,
                definition=effect.definition,
            )
            lane.waiting.append(attempt)
        if lane.running is None:
            lane.told_after = self.random.randint(1, GROUP_MAX) if is_stream else 1
            self._next(effect.slot, lane)

    def stop(self, effect: StopAttempts) -> None:
        """End these; those that have not begun at once, the others when they obey, or end by themselves before."""
        lane = self.lanes[effect.slot]
        wanted = dict.fromkeys(effect.leases)
        never_begun = Fate(None, effect.reason, None, None, None)
        stopped = [attempt for attempt in lane.waiting if attempt.lease in wanted]
        if stopped:
            lane.waiting = deque(attempt for attempt in lane.waiting if attempt.lease not in wanted)
            now = self.clock.now()
            rows = [(attempt, now, now, never_begun) for attempt in stopped]
            self.loop.after(0.0, self._told, effect.slot, rows)
        running = lane.running
        if running is not None and running.attempt.lease in wanted:
            delay_s = TERM_S_MAX if self.random.random() < 0.05 else self.random.expovariate(20.0)
            self.loop.after(delay_s, self._obey, effect.slot, running.turn, effect.reason)

    def take_back(self, effect: TakeBack) -> None:
        """Those of these that have not begun; the process has read some of what waits, and keeps it."""
        lane = self.lanes[effect.slot]
        wanted = dict.fromkeys(effect.leases)
        read = self.random.randint(0, 3)
        waiting = list(lane.waiting)
        back = [attempt for attempt in waiting[read:] if attempt.lease in wanted]
        if back:
            left = [attempt for attempt in waiting[read:] if attempt.lease not in wanted]
            lane.waiting = deque(waiting[:read] + left)
            items = [b"" if attempt.item is None else attempt.item for attempt in back]
            event = TakenBack(effect.slot, [attempt.lease for attempt in back], items)
            self.loop.after(0.0, self._tell_taken, event)

    def _tell_taken(self, event: TakenBack) -> None:
        if self.is_alive:
            self._tell(event)

    def hang(self) -> bool:
        """Some attempt that runs never ends by itself now; False if none runs."""
        lanes = [lane for lane in self.lanes if lane.running is not None]
        if not lanes:
            return False
        running = self.random.choice(lanes).running
        assert running is not None
        self._turn += 1
        running.turn = self._turn
        running.fate = Fate(None, "timeout", None, 15, None)
        return True

    def limit(self) -> None:
        """The world is healed: what hangs meets its time limit, unless nobody wants it any more: that must be stopped."""
        for slot, lane in enumerate(self.lanes):
            running = lane.running
            if running is not None and running.fate.took_s is None and self.oracle.is_wanted(running.attempt):
                self.loop.after(self.random.uniform(0.0, 5.0), self._obey, slot, running.turn, "timeout")

    def _next(self, slot: int, lane: Lane) -> None:
        if not lane.waiting:
            return
        attempt = lane.waiting.popleft()
        profile = self.profiles[attempt.definition.name]
        result = result_of(attempt.job, attempt.index, attempt.item, attempt.lease, profile.big)
        fate = draw_fate(self.random, profile, result, self.oracle.is_healed)
        self._turn += 1
        lane.running = Running(attempt, self.clock.now(), fate, self._turn)
        self.oracle.started(attempt, self.process)
        assert self.busy <= len(self.lanes)
        if fate.took_s is None:
            self.tally.count("hung attempt")
        else:
            self.loop.after(fate.took_s, self._end, slot, self._turn)

    def _obey(self, slot: int, turn: int, reason: str) -> None:
        lane = self.lanes[slot]
        if self.is_alive and lane.running is not None and lane.running.turn == turn:
            lane.running.fate = Fate(0.0, reason, None, 15, None)
            self._end(slot, turn)

    def _end(self, slot: int, turn: int) -> None:
        lane = self.lanes[slot]
        running = lane.running
        if not self.is_alive or running is None or running.turn != turn:
            return
        lane.running = None
        fate = running.fate
        self.oracle.ended(running.attempt, fate)
        if fate.reason != "done":
            self.tally.count("failed attempt")
        # A clock that jumps back must not make an attempt end before it began.
        lane.ended.append((running.attempt, running.began, max(running.began, self.clock.now()), fate))
        self._next(slot, lane)
        lane.told_after -= 1
        if lane.told_after <= 0 or lane.running is None or fate.reason != "done":
            lane.told_after = self.random.randint(1, GROUP_MAX)
            rows, lane.ended = lane.ended, []
            self._told(slot, rows)

    def _told(self, slot: int, rows: list[tuple[Attempt, float, float, Fate]]) -> None:
        if not self.is_alive:
            return
        event = AttemptsEnded(slot, [attempt.lease for attempt, *_ in rows], [ended for _, _, ended, _ in rows])
        if any(fate.reason != "done" for *_, fate in rows):
            event.reasons = [fate.reason for *_, fate in rows]
            event.exit_codes = [fate.exit_code for *_, fate in rows]
            event.signals = [fate.signal for *_, fate in rows]
        event.started = [began for _, began, _, _ in rows]
        event.results = [fate.result for *_, fate in rows]
        assert not any(
            isinstance(result, Blob) and fate.reason != "done" for *_, fate in rows for result in [fate.result]
        )
        self._tell(event)
