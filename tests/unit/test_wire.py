"""Framing: whatever arrives, however it is cut, becomes messages or a RemoteProtocolError, within bounds."""

import contextlib
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.errors import LocalProtocolError, RemoteProtocolError
from districomp.messages import (
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    Ack,
    Goodbye,
    Heartbeat,
    HelloClient,
    Message,
    Submit,
)
from districomp.wire import Decoder, encode

from .message_strategies import MESSAGE_TYPES, messages, messages_of


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def submit_with_param(value: bytes) -> bytes:
    """A Submit's body whose one param is this MessagePack."""
    return b"\x95\x1e\x01\xa1x\xa1d\x81\xa1k" + value


def greeted() -> Decoder:
    decoder = Decoder()
    decoder.greeted()
    return decoder


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_survives_a_cut_at_every_byte(kind: type[Message]) -> None:
    @given(message=messages_of(kind), follower=messages())
    def check(message: Message, follower: Message) -> None:
        data = encode(message) + encode(follower)
        for cut in range(len(data) + 1):
            decoder = Decoder()
            got = decoder.receive(data[:cut]) + decoder.receive(data[cut:])
            assert got == [message, follower]
            assert decoder.pending_bytes == 0

    check()


@given(st.lists(messages(), max_size=5))
def test_messages_survive_byte_by_byte(sent: list[Message]) -> None:
    decoder = Decoder()
    got = [message for byte in b"".join(map(encode, sent)) for message in decoder.receive(bytes([byte]))]
    assert got == sent


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_waits_for_more(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        greeted().receive(data)


@given(st.binary(max_size=200))
def test_a_frame_of_garbage_is_a_message_or_a_protocol_error(body: bytes) -> None:
    try:
        [message] = greeted().receive(frame(body))
    except RemoteProtocolError:
        return
    assert isinstance(message, MESSAGE_TYPES)


@given(messages(), st.data())
def test_a_message_with_one_wrong_byte_is_a_message_or_a_protocol_error(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message)[4:])
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] = data.draw(st.integers(0, 255))
    try:
        [got] = greeted().receive(frame(bytes(body)))
    except RemoteProtocolError:
        return
    assert isinstance(got, MESSAGE_TYPES)


@given(messages())
def test_a_truncated_frame_yields_nothing_and_takes_no_more_than_it_has(message: Message) -> None:
    data = encode(message)
    decoder = Decoder()
    assert decoder.receive(data[:-1]) == []
    assert decoder.pending_bytes == len(data) - 1


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("nothing", b""),
        ("not an array", msgspec.msgpack.encode({"type": 6})),
        ("an empty array", msgspec.msgpack.encode([])),
        ("an unknown tag", msgspec.msgpack.encode([99])),
        ("a tag of text", msgspec.msgpack.encode(["6"])),
        ("a missing field", msgspec.msgpack.encode([2, 1])),
        ("a surplus field", msgspec.msgpack.encode([6, "more"])),
        ("text for a number", msgspec.msgpack.encode([16, ["1"]])),
        ("a number for text", msgspec.msgpack.encode([5, 1, "text"])),
        ("null for a list", msgspec.msgpack.encode([16, None])),
        ("a float for an integer", msgspec.msgpack.encode([16, [1.5]])),
        ("an integer of 65 bits", b"\x92\x10\x91\xc7\x09\x00" + bytes(9)),
        ("two messages in one frame", msgspec.msgpack.encode([6]) * 2),
        ("invalid UTF-8", b"\x93\x05\xa2\xff\xfe\xa0"),
        ("a half surrogate", b"\x93\x05\xa3\xed\xa0\x80\xa0"),
        ("arrays 100,000 deep", b"\x91" * 100_000),
        ("arrays 100,000 deep in a param", submit_with_param(b"\x91" * 100_000 + b"\xc0")),
        ("an array that claims four billion entries", b"\x92\x10\xdd\xff\xff\xff\xff\x01"),
        ("text that claims four gigabytes", b"\x93\x05\xdb\xff\xff\xff\xffx"),
    ],
)
def test_malformed_frames_are_the_peers_error(what: str, body: bytes) -> None:
    decoder = greeted()
    with pytest.raises(RemoteProtocolError):
        decoder.receive(frame(body))


def test_a_deep_parameter_would_be_accepted_if_it_were_shallow() -> None:
    """The case above fails for its depth and nothing else."""
    [message] = greeted().receive(frame(submit_with_param(b"\x91" * 3 + b"\xc0")))
    assert message == Submit(1, "x", "d", {"k": [[[None]]]})


def test_before_the_greeting_the_limit_is_small() -> None:
    message = Goodbye("x", "y" * GREETING_BYTES_MAX)
    with pytest.raises(RemoteProtocolError, match=str(GREETING_BYTES_MAX)):
        Decoder().receive(encode(message))
    assert greeted().receive(encode(message)) == [message]


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_an_oversized_frame_is_refused_on_its_prefix_alone(size: int) -> None:
    decoder = greeted()
    with pytest.raises(RemoteProtocolError, match=str(size)):
        decoder.receive(struct.pack(">I", size))


def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    overhead = len(encode(Goodbye("", "y" * 70_000))) - 4 - 70_000
    largest = Goodbye("", "y" * (FRAME_BYTES_MAX - overhead))
    data = encode(largest)
    assert len(data) - 4 == FRAME_BYTES_MAX
    assert greeted().receive(data) == [largest]
    with pytest.raises(LocalProtocolError, match="Goodbye"):
        encode(Goodbye("", "y" * (FRAME_BYTES_MAX - overhead + 1)))


def test_an_announced_frame_takes_no_memory_before_it_arrives() -> None:
    decoders = [greeted() for _ in range(100)]
    prefix = struct.pack(">I", FRAME_BYTES_MAX)
    tracemalloc.start()
    try:
        for decoder in decoders:
            assert decoder.receive(prefix) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < FRAME_BYTES_MAX // 10


def test_a_list_that_claims_billions_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            greeted().receive(frame(b"\x92\x10\xdd\x0f\xff\xff\xff\x01"))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < FRAME_BYTES_MAX


def test_messages_before_a_malformed_frame_are_not_half_delivered() -> None:
    """A connection ends with its first error; what came before it in the same read is not acted upon."""
    with pytest.raises(RemoteProtocolError):
        greeted().receive(encode(Ack([1])) + frame(b"\xc1"))


def test_a_frame_is_its_length_and_one_message() -> None:
    assert encode(Heartbeat()) == b"\x00\x00\x00\x02\x91\x06"
    assert encode(HelloClient(1, "dctl")) == b"\x00\x00\x00\x08\x93\x02\x01\xa4dctl"
