"""The set of messages itself: complete, numbered, documented."""

import re
from pathlib import Path

import msgspec
import pytest

from districomp import messages
from districomp.messages import FRAME_BYTES_MAX, GREETING_BYTES_MAX, Message
from districomp.model import INLINE_BYTES_MAX
from districomp.wire import encode

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


def test_an_inline_payload_fits_into_any_frame_but_a_greeting() -> None:
    report = messages.Reports(1, 1, [1], [1], results=[b"x" * INLINE_BYTES_MAX], stderr=[b"y" * 64 * 1024])
    assert GREETING_BYTES_MAX < len(encode(report)) <= FRAME_BYTES_MAX
