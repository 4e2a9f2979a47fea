"""What the worker's core is told (events) and what it wants done (effects): the only ways in and out.

All times are seconds of one clock of the worker's own, which never jumps; only the core turns them
into the coordinator's clock. Columns as in `messages.py`: an empty one has the default everywhere.
"""

from typing import Any

import msgspec

from districomp.messages import AnyMessage, Message, Welcome
from districomp.model import Blob, Item, Payload
from districomp.taskdef import Definition


class Event(msgspec.Struct, gc=False):
    """The base of all events."""


class Connected(Event):
    """The coordinator accepted our greeting. `cluster`: which it is, also when its id has changed meanwhile; '' as the Welcome says."""

    welcome: Welcome
    at: float
    cluster: str = ""


class Disconnected(Event):
    """The connection is gone; the link is already trying to make another."""


class Received(Event):
    """A message of the coordinator, after its Welcome."""

    message: AnyMessage
    at: float


class AttemptsEnded(Event):
    """Attempts of one slot ended, in their order. A result that is a Blob lies in the worker's spool, not yet uploaded."""

    slot: int
    leases: list[int]
    ended: list[float]
    reasons: list[str] = []  # all "done"
    exit_codes: list[int | None] = []  # all None
    signals: list[int | None] = []  # all None
    started: list[float | None] = []  # all None
    cpu_s: list[float | None] = []  # all None
    memory_bytes: list[int | None] = []  # all None
    stderr: list[bytes] = []  # all empty
    results: list[Payload | None] = []  # all None


class TakenBack(Event):
    """The answer to the effect TakeBack: these attempts have not begun, and will not. No answer: there are none.

    Processes that were to follow one that lasts come back unasked. `items` are the tasks' data, as they would be in a StartAttempts.
    """

    slot: int
    leases: list[int]
    items: list[Item]  # empty: no input


class Uploaded(Event):
    """The answer to the effect Upload: the coordinator has the blob."""

    lease: int


class Looked(Event):
    """The answer to the effect Look: which of these programs the machine has."""

    programs: list[str]
    found: list[str]


class Shutdown(Event):
    """The daemon was told to stop: hand everything back, then Exit."""


Events = Connected | Disconnected | Received | AttemptsEnded | TakenBack | Uploaded | Looked | Shutdown


class Effect(msgspec.Struct, gc=False):
    """The base of all effects."""


class SendMessage(Effect):
    """Send this to the coordinator; never emitted without a connection."""

    message: Message


class StartAttempts(Effect):
    """Run these in a slot, in their order, after those that are in it. One process takes many, or they are processes that
    follow one another.

    A task's params are `params` and, with a `matrix`, `taskdef.matrix_params` of its index.
    """

    slot: int
    job: int
    definition: Definition
    params: dict[str, Any]
    leases: list[int]
    indexes: list[int]
    attempts: list[int]  # empty: all 1
    items: list[Item]  # empty: no input
    matrix: list[tuple[str, list[Any]]] = []


class StopAttempts(Effect):
    """End these: TERM, KILL later. Each is answered by AttemptsEnded, with this reason unless it ended before."""

    slot: int
    leases: list[int]
    reason: str


class TakeBack(Effect):
    """The slot's first attempt takes long: take back those of these that its process has not read. Answered by TakenBack."""

    slot: int
    leases: list[int]


class Upload(Effect):
    """Send an attempt's spooled result to the data port, for as long as it takes; answered by Uploaded."""

    lease: int
    blob: Blob


class Discard(Effect):
    """Nobody needs these attempts' spooled results any more; their uploads end unanswered."""

    leases: list[int]


class UseData(Effect):
    """Where the coordinator's data port is from now on."""

    url: str


class Reset(Effect):
    """Close the connection with a Goodbye of this code and text, and make another. Answered by Disconnected."""

    code: str
    text: str


class Look(Effect):
    """Look for these programs on the machine; answered by Looked."""

    programs: list[str]


class Exit(Effect):
    """Everything is handed back, or cannot be: end the process."""


Effects = SendMessage | StartAttempts | StopAttempts | TakeBack | Upload | Discard | UseData | Look | Reset | Exit
