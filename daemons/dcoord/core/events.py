"""What the core is told: the only way in. Times are Unix seconds by the coordinator's clock, stamped on arrival."""

import msgspec

from dcoord.core.effects import ReadJob
from dcoord.core.records import RestoredJob
from dcoord.core.rights import Principal
from districomp.messages import AnyMessage
from districomp.model import Item
from districomp.taskdef import Definition


class Event(msgspec.Struct, gc=False):
    """The base of all events."""


class Received(Event):
    """A peer's message. `peer` numbers a connection and is never reused; `address` is where it is, for people.

    `fault` (code, text): the driver found that the request cannot be met (a blob is missing, a key is none); it is
    refused so. `principal`: who the peer has proved to be; with a greeting, and with Enrol.
    `entropy`: 16 random bytes, with CreateToken and Enrol. `spki`: the public key (DER) of a checked CSR.
    """

    peer: int
    message: AnyMessage
    at: float
    address: str = ""
    fault: tuple[str, str] | None = None
    principal: Principal | None = None
    entropy: bytes = b""
    spki: bytes = b""


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


class AuthoritiesChanged(Event):
    """The authorities (DER) that the coordinator is known by, the newest first, each with its end (Unix seconds).

    `grant_key`: what grants are signed with from now on. `rotated`: (peer, request) of the RotateAuthority that this carries out.
    """

    authorities: list[bytes]
    until: list[float]
    grant_key: bytes = b""
    rotated: tuple[int, int] | None = None


class SpaceLeft(Event):
    """How many bytes the journal's file system still takes."""

    free_bytes: int


Events = Received | Gone | PayloadRead | JobRead | DefinitionsChanged | Degraded | AuthoritiesChanged | SpaceLeft
