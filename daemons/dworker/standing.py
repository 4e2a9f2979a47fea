"""How far a worker has come, as one line for systemd's status, and what that line says to whoever shows it.

Pure: both directions in one place, so that a screen (console.py) never guesses at words written elsewhere.
"""

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from districomp.addresses import address_text

State = Literal["joined", "pending", "apart"]
ADDRESSES_SHOWN: Final = 4

_JOINED: Final = re.compile(r"joined (?P<name>.+) at (?P<place>\S+)")
_PENDING: Final = re.compile(r"waits to be let in at (?P<place>.+), its words are: (?P<words>\S+)")


class Standing(NamedTuple):
    """`apart`: neither joined nor pending, and `text` is why. `place`: where the coordinator is, if that is known."""

    state: State
    text: str
    name: str = ""
    place: str = ""
    words: str = ""


def joined(name: str, place: str) -> str:
    """The line of a worker that works for the cluster of this name."""
    return f"joined {name} at {place}"


def pending(addresses: Sequence[tuple[str, int]], words: str) -> str:
    """The line of a worker that a person has to let in, at a coordinator with these addresses."""
    place = " or ".join(address_text(one) for one in addresses[:ADDRESSES_SHOWN])
    return f"waits to be let in at {place}, its words are: {words}"


def read(line: str) -> Standing:
    """What such a line says."""
    if match := _JOINED.fullmatch(line):
        return Standing("joined", line, **match.groupdict())
    if match := _PENDING.fullmatch(line):
        return Standing("pending", line, **match.groupdict())
    return Standing("apart", line)
