"""Bytes to messages and back, sans-I/O: `Decoder.receive(bytes) -> messages`, `encode(message) -> bytes`.

Owns the framing (4-byte big-endian length, then one MessagePack message) and its limits. Knows
nothing of sockets, time or what a message means.
"""

import struct
from typing import Final

import msgspec

from districomp.errors import LocalProtocolError, RemoteProtocolError
from districomp.messages import FRAME_BYTES_MAX, GREETING_BYTES_MAX, AnyMessage, Message, Reports

GREETING_MESSAGES_MAX = 64
"""What is decoded at once of somebody who has not said who it is: 256 KiB of the smallest would take 20 ms."""
REPORTS_BYTES_MAX: Final = 768 * 1024
"""Largest Reports: its rows go on to clients, with other words around them, and must fit into a frame then too."""
UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What msgspec raises for bytes that are not what they should be."""
_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """One frame. LocalProtocolError if it is larger than any peer accepts."""
    body = bytearray(4)
    _encoder.encode_into(message, body, 4)
    size = len(body) - 4
    if size > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"a {type(message).__name__} of {size} bytes is over a frame's {FRAME_BYTES_MAX}")
    _LENGTH.pack_into(body, 0, size)
    return bytes(body)


class Decoder:
    """One connection's incoming half.

    Starts with the greeting's small limit; `greeted()` lifts it. After a RemoteProtocolError the
    connection must be closed: the stream has no point at which to resume.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frame_bytes_max = GREETING_BYTES_MAX
        self._messages_max: int | None = GREETING_MESSAGES_MAX

    def greeted(self) -> None:
        """The peer said who it is: frames of the full size are accepted from now on, and any number of them."""
        self._frame_bytes_max = FRAME_BYTES_MAX
        self._messages_max = None

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def receive(self, data: bytes | memoryview) -> list[AnyMessage]:
        """The messages that `data` completes, in order. RemoteProtocolError for anything malformed.

        The limit is checked on the length prefix, before the frame's memory is taken. A greeting's
        receiver must look at the first message before it calls `receive` again.
        """
        buffer = self._buffer
        buffer += data
        messages: list[AnyMessage] = []
        start, end = 0, len(buffer)
        view = memoryview(buffer)
        try:
            while end - start >= 4:
                (size,) = _LENGTH.unpack_from(buffer, start)
                if size > self._frame_bytes_max:
                    raise RemoteProtocolError(f"a frame of {size} bytes is announced, {self._frame_bytes_max} allowed")
                if end - start - 4 < size:
                    break
                if len(messages) == self._messages_max:
                    raise RemoteProtocolError(
                        f"more than {self._messages_max} messages came at once before the greeting"
                    )
                messages.append(_decode(view[start + 4 : start + 4 + size]))
                start += 4 + size
        finally:
            view.release()
        del buffer[:start]
        return messages


def _decode(frame: memoryview) -> AnyMessage:
    try:
        message = _decoder.decode(frame)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"a frame is not a message of this protocol: {error}") from error
    if len(frame) > REPORTS_BYTES_MAX and type(message) is Reports:
        raise RemoteProtocolError(f"a Reports of {len(frame)} bytes came, {REPORTS_BYTES_MAX} are allowed")
    return message
