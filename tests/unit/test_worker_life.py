"""A worker's whole life, drawn at random: whatever happens, each lease is answered exactly once."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from districomp.messages import Ack, Assign, Recall, Reports, Returned, Stop
from dworker.events import AttemptsEnded, Disconnected, StartAttempts, TakeBack, TakenBack, Upload, Uploaded
from tests.unit.workerlab import BLOB, Lab

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["assign", "end", "end", "end", "recall", "stop", "wait", "cut", "cut", "upload", "acknowledge", "back"]
        ),
        st.integers(0, 50),
    ),
    max_size=60,
)


class Life:
    """What happens to a worker with three slots, and what was heard of it. Each action takes a number to choose by."""

    def __init__(self) -> None:
        self.lab = Lab(slots=3)
        self.given: list[int] = []
        self.heard: dict[int, Reports] = {}
        self.returned: list[int] = []
        self.hands: dict[int, int] = {}  # lease -> slot
        self.uploads: list[int] = []
        self.asked: list[TakeBack] = []
        self.connected = False
        self.lab.watch = self.look
        self.cut(0)

    def look(self) -> None:
        for message in self.lab.sent:
            if isinstance(message, Reports):
                assert self.heard.setdefault(message.serial, message) == message
            elif isinstance(message, Returned):
                self.returned += message.leases
        for effect in self.lab.effects:
            if isinstance(effect, StartAttempts):
                self.hands.update(dict.fromkeys(effect.leases, effect.slot))
            elif isinstance(effect, Upload):
                self.uploads.append(effect.lease)
            elif isinstance(effect, TakeBack):
                self.asked.append(effect)

    def assign(self, number: int) -> None:
        if self.connected:
            first = len(self.given) + 1
            leases = list(range(first, first + number))
            self.given += leases
            self.lab.hear(Assign(1 + number % 2, first, leases))

    def end(self, number: int) -> None:
        if self.hands:
            slot = list(self.hands.values())[number % len(self.hands)]
            lease = next(lease for lease, where in self.hands.items() if where == slot)
            del self.hands[lease]
            columns: dict[str, Any] = {"results": [BLOB if number % 7 == 0 else b"r"]}
            now = self.lab.now
            self.lab.feed(AttemptsEnded(slot, [lease], [now], started=[now - number / 1000], **columns))

    def cut(self, _: int) -> None:
        if self.connected:
            self.lab.feed(Disconnected())
        else:
            self.lab.connect()
            self.lab.define(1)
            self.lab.define(2, "stream")
        self.connected = not self.connected

    def recall(self, number: int) -> None:
        if self.connected:
            self.lab.hear(Recall(self.given[-number:]))

    def stop(self, number: int) -> None:
        if self.connected:
            self.lab.hear(Stop(self.given[-number:]))

    def wait(self, number: int) -> None:
        self.lab.wait(number / 10)

    def back(self, number: int) -> None:
        """Some of what was asked back comes, the newest first, as long as they have not ended."""
        if self.asked:
            ask = self.asked.pop()
            taken = [lease for lease in ask.leases if lease in self.hands][number % 3 :]
            for lease in taken:
                del self.hands[lease]
            if taken:
                self.lab.feed(TakenBack(ask.slot, taken, [b"item"] * len(taken)))

    def upload(self, _: int) -> None:
        if self.uploads:
            self.lab.feed(Uploaded(self.uploads.pop()))

    def acknowledge(self, _: int) -> None:
        if self.connected:
            self.lab.hear(Ack(list(self.heard)))


@settings(deadline=None, max_examples=100)
@given(ACTIONS)
def test_every_lease_is_answered_exactly_once_whatever_happens(actions: list[tuple[str, int]]) -> None:
    life = Life()
    for name, number in actions:
        getattr(life, name)(number)
    # Silence may have made it ask for another connection: give it one.
    life.lab.feed(Disconnected())
    life.connected = False
    life.cut(0)
    while life.hands or life.uploads:
        life.end(1)
        life.upload(0)
    reported = [lease for message in life.heard.values() for lease in message.leases]
    assert sorted(reported + life.returned) == life.given
    assert life.lab.core.running == life.lab.core.queued == 0
