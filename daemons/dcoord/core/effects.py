"""What the core wants done: the only way out, besides the records (`records.py`) that are committed first."""

import msgspec

from districomp.messages import AnyMessage


class Effect(msgspec.Struct, gc=False):
    """The base of all effects."""


class Send(Effect):
    """Send a message to a connection; nothing happens if it is gone."""

    peer: int
    message: AnyMessage


class Close(Effect):
    """Say Goodbye with this code and text, then close the connection."""

    peer: int
    code: str
    text: str


class ReadPayload(Effect):
    """Read the chunk of a job's items that begins at index `first`; answered by the event PayloadRead."""

    job: int
    first: int


class ReadJob(Effect):
    """Read an ended job back whole, heads included; answered by the event JobRead with this very effect."""

    job: int
    peer: int
    request: int
    failed_only: bool
