"""The set of messages itself: complete, numbered, documented."""

import math
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from districomp import messages
from districomp.documents import iso_time
from districomp.errors import RemoteProtocolError
from districomp.messages import FRAME_BYTES_MAX, GREETING_BYTES_MAX, Message
from districomp.model import INLINE_BYTES_MAX, Time
from districomp.wire import Decoder, encode

from .message_strategies import MESSAGE_TYPES

SOURCE = Path(messages.__file__).read_text(encoding="utf-8")


def test_the_union_holds_every_message() -> None:
    """A message that is left out of AnyMessage would encode and never decode."""
    assert set(MESSAGE_TYPES) == set(Message.__subclasses__())


def test_tags_are_small_numbers_and_unique() -> None:
    tags = [tag for kind in MESSAGE_TYPES if isinstance(tag := kind.__struct_config__.tag, int)]
    assert len(set(tags)) == len(tags) == len(MESSAGE_TYPES)
    assert all(0 < tag < 128 for tag in tags), "one byte in MessagePack"
    assert tags == sorted(tags), "in the order of their numbers, as a reader looks for them"


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_is_strict_and_says_what_it_is(kind: type[Message]) -> None:
    config = kind.__struct_config__
    assert config.array_like
    assert config.forbid_unknown_fields
    assert not config.omit_defaults, "a field's place in the array is its meaning"
    assert re.search(rf"class {kind.__name__}\(Message, tag=\d+\):\n    \"\"\"", SOURCE), "no docstring"


def test_fields_with_defaults_come_last() -> None:
    """Only such can be appended in a later version of the protocol."""
    for kind in MESSAGE_TYPES:
        required = [field.required for field in msgspec.structs.fields(kind)]
        assert required == sorted(required, reverse=True), kind.__name__


@pytest.mark.parametrize("time", [math.inf, -math.inf, math.nan, 1e18, -1e18])
def test_a_time_that_cannot_be_shown_as_a_date_is_not_taken(time: float) -> None:
    for message in (
        messages.Started([1], [time]),
        messages.Inventory(1, [1], [1], [1], [time], True),
        messages.Reports(1, 1, [1], [1], started=[time]),
        messages.Reports(1, 1, [1], [1], ended=[time]),
    ):
        with pytest.raises(RemoteProtocolError):
            Decoder().receive(encode(message))


@pytest.mark.parametrize("now", [1e11, -1.0, math.inf, math.nan])
def test_a_clock_whose_times_nobody_would_take_is_not_believed(now: float) -> None:
    """A worker tells all times by the coordinator's clock, and would be sent away for each report."""
    with pytest.raises(RemoteProtocolError):
        Decoder().receive(encode(messages.Welcome(messages.PROTOCOL_VERSION, "c", "n", 1, 15.0, "", now)))


def test_each_time_that_is_taken_can_be_shown() -> None:
    (limits,) = [one for one in get_args(Time) if isinstance(one, msgspec.Meta)]
    assert iso_time(limits.ge)
    assert iso_time(limits.le)


def test_an_inline_payload_fits_into_any_frame_but_a_greeting() -> None:
    report = messages.Reports(1, 1, [1], [1], results=[b"x" * INLINE_BYTES_MAX], stderr=[b"y" * 64 * 1024])
    assert GREETING_BYTES_MAX < len(encode(report)) <= FRAME_BYTES_MAX
