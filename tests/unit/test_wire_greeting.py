"""How much is decoded of somebody who has not said who it is."""

import pytest

from districomp import wire
from districomp.errors import RemoteProtocolError
from districomp.messages import Heartbeat

TOO_MANY = wire.encode(Heartbeat()) * (wire.GREETING_MESSAGES_MAX + 1)


def test_before_the_greeting_a_flood_of_small_messages_is_not_decoded() -> None:
    with pytest.raises(RemoteProtocolError, match="messages came at once"):
        wire.Decoder().receive(TOO_MANY)


def test_after_it_any_number_is() -> None:
    decoder = wire.Decoder()
    decoder.greeted()
    assert len(decoder.receive(TOO_MANY)) == wire.GREETING_MESSAGES_MAX + 1
