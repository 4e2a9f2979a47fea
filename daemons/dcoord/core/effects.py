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


class Sign(Effect):
    """Issue a certificate for the key of `csr` and send it to a connection as Enrolled; that connection is `identity` then."""

    peer: int
    request: int
    csr: bytes
    role: str
    identity: str
    name: str


class Rotate(Effect):
    """Make a new authority, the old one good for `overlap_s` more; answered by the event AuthoritiesChanged."""

    peer: int
    request: int
    overlap_s: float


class RefusedChanged(Effect):
    """The identities that are refused have changed (`trust.refused`): dcoord-web must know."""
