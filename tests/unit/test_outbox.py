"""What connections write while an outbox is entered, on a transport that takes down every write."""

import asyncio
from typing import Any

import pytest

from districomp import stream, wire
from districomp.messages import Ack, AnyMessage, Define, Goodbye, Heartbeat, Stop
from districomp.stream import Connection, Outbox


class Silent:
    """Owns connections and does not care."""

    def opened(self, connection: Connection) -> None: ...

    def received(self, connection: Connection, messages: list[AnyMessage], at: float) -> None: ...

    def closed(self, connection: Connection, reason: str) -> None: ...


class Writes(asyncio.Transport):
    """Takes down what is written, in a list that several may share."""

    def __init__(self, name: str, log: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self.name = name
        self.log = log
        self.aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return "/a/socket" if name == "sockname" else default

    def write(self, data: Any) -> None:
        self.log.append((self.name, bytes(data)))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


def connections(outbox: Outbox, *names: str) -> tuple[list[tuple[str, bytes]], list[Connection]]:
    log: list[tuple[str, bytes]] = []
    made = []
    for name in names:
        connection = Connection(Silent(), outbox=outbox)
        connection.connection_made(Writes(name, log))
        made.append(connection)
    return log, made


def test_what_is_said_in_one_go_is_one_write_in_its_order() -> None:
    outbox = Outbox()
    log, (one,) = connections(outbox, "one")
    with outbox:
        one.send(Heartbeat())
        one.send(Ack([1]))
        assert not log
        assert one.unsent_bytes == len(wire.encode(Heartbeat()) + wire.encode(Ack([1])))
    assert log == [("one", wire.encode(Heartbeat()) + wire.encode(Ack([1])))]
    assert one.unsent_bytes == 0


def test_who_was_spoken_to_last_hears_first() -> None:
    outbox = Outbox()
    log, (client, worker) = connections(outbox, "client", "worker")
    with outbox:
        client.send(Heartbeat())
        worker.send(Ack([1]))
        client.send(Heartbeat())
    assert [name for name, _ in log] == ["worker", "client"]


def test_outside_of_it_nothing_is_held_back() -> None:
    outbox = Outbox()
    log, (one,) = connections(outbox, "one")
    with outbox:
        pass
    one.send(Heartbeat())
    assert len(log) == 1


def test_no_more_is_held_back_than_a_slow_peer_is_noticed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HELD_BYTES_MAX", 1000)
    outbox = Outbox()
    log, (one,) = connections(outbox, "one")
    with outbox:
        one.send(Define("d", bytes(600)))
        assert not log
        one.send(Define("d", bytes(600)))
        assert len(log) == 1
        one.send(Heartbeat())
        assert len(log) == 1
    assert len(log) == 2


def test_what_was_said_before_a_goodbye_comes_before_it() -> None:
    outbox = Outbox()
    log, (one,) = connections(outbox, "one")

    async def farewell() -> None:
        with outbox:
            one.send(Stop([7]))
            one.close("stopping", "for today")
        one._cancel_deadline()

    asyncio.run(farewell())
    assert log == [("one", wire.encode(Stop([7])) + wire.encode(Goodbye("stopping", "for today")))]


def test_who_is_gone_is_written_nothing() -> None:
    outbox = Outbox()
    log, (one, two) = connections(outbox, "one", "two")
    with outbox:
        one.send(Heartbeat())
        two.send(Heartbeat())
        one.cut("enough")
    assert [name for name, _ in log] == ["two"]
