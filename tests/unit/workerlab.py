"""A worker's core with a clock and a wire: every message is encoded and decoded on its way, every step checked."""

from collections.abc import Callable
from typing import Any

from districomp import wire
from districomp.messages import Define, JobSpec, Message, Welcome
from districomp.model import Blob
from districomp.taskdef import Definition, encode_definition
from dworker.core import Settings, WorkerCore
from dworker.events import AttemptsEnded, Connected, Effects, Received, SendMessage, StartAttempts

OFFSET_S = 1_700_000_000.0
LEASE_S = 15.0
BLOB = Blob(b"\x07" * 32, 100_000)


def over_the_wire(message: Message) -> Any:
    """A message as its receiver gets it."""
    decoder = wire.Decoder()
    decoder.greeted()
    (received,) = decoder.receive(wire.encode(message))
    return received


class Lab:
    """A core, the clock, and what it said."""

    def __init__(self, slots: int = 2, *, can_queue: bool = False) -> None:
        self.core = WorkerCore(Settings(slots=slots, first_serial=1000, can_queue=can_queue))
        self.now = 100.0
        self.sent: list[Any] = []
        self.effects: list[Effects] = []
        self.starts: list[StartAttempts] = []
        self.watch: Callable[[], None] = lambda: None

    def feed(self, *events: Any) -> None:
        effects = self.core.handle_batch(list(events), self.now) + self.core.tick(self.now)
        self.core.check()
        self.sent = [over_the_wire(effect.message) for effect in effects if isinstance(effect, SendMessage)]
        self.effects = [effect for effect in effects if not isinstance(effect, SendMessage)]
        self.starts = [effect for effect in effects if isinstance(effect, StartAttempts)]
        self.watch()

    def hear(self, *messages: Message) -> None:
        self.feed(*(Received(over_the_wire(message), self.now) for message in messages))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed()

    def connect(self, cluster: str = "c1") -> None:
        welcome = Welcome(1, cluster, "lab", 1, LEASE_S, "http://127.0.0.1:1", self.now + OFFSET_S)
        self.feed(Connected(over_the_wire(welcome), self.now))

    def define(self, job: int = 1, runner: Any = "command", **rest: Any) -> None:
        numbers, matrix = rest.pop("numbers", None), rest.pop("matrix", [])
        definition = Definition("d", f"digest{job}", "", runner, **{"argv": ["true"]} | rest)
        spec = JobSpec(job, definition.digest, {}, numbers, matrix)
        self.hear(Define(definition.digest, encode_definition(definition)), spec)

    def end(self, start: StartAttempts, each_s: float = 0.0, **columns: Any) -> None:
        """All attempts of a start end, done unless `columns` say otherwise, one after another."""
        count = len(start.leases)
        begun = [self.now + place * each_s for place in range(count)]
        self.now += count * each_s
        ended = [time + each_s for time in begun]
        self.feed(AttemptsEnded(start.slot, start.leases, ended, started=list(begun), **columns))
