"""gearmand: Debian's job server, with clients and workers of our own that speak its binary protocol.

The workers are as bare as can be: a loop around a socket, no child, no time limit, no lease. The packets are those of
PROTOCOL in gearmand's sources.
"""

import socket
import struct
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Final

from bench.peers.base import Place
from bench.peers.driver import dispatch, run_true, serve_bare
from bench.peers.kinds import BareQueue

CAN_DO: Final = 1
PRE_SLEEP: Final = 4
NOOP: Final = 6
SUBMIT_JOB: Final = 7
JOB_CREATED: Final = 8
GRAB_JOB: Final = 9
NO_JOB: Final = 10
JOB_ASSIGN: Final = 11
WORK_COMPLETE: Final = 13
SUBMIT_JOB_BG: Final = 18
HEAD_BYTES: Final = 12
WINDOW: Final = 256
"""Submissions on their way at once."""


class Gearman(BareQueue):
    """Bare workers, in memory."""

    name: ClassVar[str] = "gearman"
    title: ClassVar[str] = "gearmand"
    package: ClassVar[str] = "gearman-job-server"
    program: ClassVar[str] = "gearmand"
    durable: ClassVar[str] = "no"
    note: ClassVar[str] = "bare workers: a loop around a socket"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 20_000, "true": 3000, "latency": 500, "queue": 50_000}

    def options(self, place: Place, port: str) -> list[str]:
        """What it writes stays in the place's folder."""
        log = place.folder / "gearmand.log"
        return ["--port", port, "--listen", "127.0.0.1", "--log-file", str(log)]


class Link:
    """A connection: packets out and in."""

    def __init__(self, port: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", int(port)))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._text = bytearray()

    def send(self, *packets: bytes) -> None:
        """In one system call."""
        self.sock.sendall(b"".join(packets))

    def receive(self) -> tuple[int, bytes]:
        """The next packet: what it is, and what it carries."""
        while True:
            if len(self._text) >= HEAD_BYTES:
                kind, size = struct.unpack_from(">II", self._text, 4)
                if len(self._text) >= HEAD_BYTES + size:
                    body = bytes(self._text[HEAD_BYTES : HEAD_BYTES + size])
                    del self._text[: HEAD_BYTES + size]
                    return kind, body
            text = self.sock.recv(1 << 20)
            if not text:
                raise ConnectionError("gearmand closed the connection")
            self._text += text


def packet(kind: int, *fields: bytes) -> bytes:
    """A request."""
    body = b"\0".join(fields)
    return b"\0REQ" + struct.pack(">II", kind, len(body)) + body


def work(port: str) -> None:
    """A worker: one job at a time."""
    link = Link(port)
    link.send(packet(CAN_DO, b"noop"), packet(CAN_DO, b"true"), packet(GRAB_JOB))
    while True:
        kind, body = link.receive()
        if kind == JOB_ASSIGN:
            handle, function, data = body.split(b"\0", 2)
            if function == b"true":
                run_true(0)
            link.send(packet(WORK_COMPLETE, handle, data), packet(GRAB_JOB))
        elif kind == NO_JOB:
            link.send(packet(PRE_SLEEP))
        elif kind == NOOP:
            link.send(packet(GRAB_JOB))


def run(link: Link, function: bytes, tasks: int) -> None:
    """Submit, and wait until all are complete."""
    sent = created = done = 0
    while done < tasks:
        if sent < tasks and sent - created < WINDOW:
            count = min(WINDOW, tasks - sent)
            link.send(*(packet(SUBMIT_JOB, function, b"", b"%d" % number) for number in range(sent, sent + count)))
            sent += count
        kind, _ = link.receive()
        created += kind == JOB_CREATED
        done += kind == WORK_COMPLETE


def queue(link: Link, tasks: int) -> None:
    """Submit, and wait until all are accepted."""
    for start in range(0, tasks, WINDOW):
        count = min(WINDOW, tasks - start)
        link.send(*(packet(SUBMIT_JOB_BG, b"noop", b"", b"%d" % number) for number in range(start, start + count)))
        for _ in range(count):
            link.receive()


def drive(port: str, workers: str) -> None:
    """The client."""
    link = Link(port)
    if int(workers):
        run(link, b"noop", 1000)
    serve_bare(partial(run, link), partial(queue, link))


if __name__ == "__main__":
    dispatch(work, drive)
