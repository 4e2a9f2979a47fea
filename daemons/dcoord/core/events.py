"""What the core is told: the only way in. Times are Unix seconds by the coordinator's clock, stamped on arrival."""

import msgspec

from dcoord.core.effects import ReadJob
from dcoord.core.records import RestoredJob
from districomp.messages import AnyMessage
from districomp.model import Item
from districomp.taskdef import Definition


class Event(msgspec.Struct, gc=False):
    """The base of all events."""


class Received(Event):
    """A peer's message. `peer` numbers a connection and is never reused; `address` is where it is, for people.

    `fault` (code, text): the driver found that the request cannot be met (a blob is missing); it is refused so.
    """

    peer: int
    message: AnyMessage
    at: float
    address: str = ""
    fault: tuple[str, str] | None = None


class Gone(Event):
    """A peer's connection is closed."""

    peer: int
    at: float


class PayloadRead(Event):
    """The answer to the effect ReadPayload: the chunk of a job's items that begins at index `first`."""

    job: int
    first: int
    items: list[Item]


class JobRead(Event):
    """The answer to the effect ReadJob."""

    effect: ReadJob
    restored: RestoredJob


class DefinitionsChanged(Event):
    """The whole catalog as it is now, by name."""

    definitions: dict[str, Definition]


class Degraded(Event):
    """The journal cannot be written, and why; '' when it can again."""

    reason: str


class SpaceLeft(Event):
    """How many bytes the journal's file system still takes."""

    free_bytes: int


Events = Received | Gone | PayloadRead | JobRead | DefinitionsChanged | Degraded | SpaceLeft
