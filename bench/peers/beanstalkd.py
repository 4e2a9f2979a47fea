"""beanstalkd with its write-ahead log, and clients and workers of our own that speak its text protocol.

The workers are as bare as can be: a loop around a socket, no child, no time limit. A result is a job in another tube.
"""

import socket
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Final

from bench.peers.base import Place
from bench.peers.driver import dispatch, run_true, serve_bare
from bench.peers.kinds import BareQueue

WINDOW: Final = 256
"""Submissions sent with one system call."""
SYNC_MS: Final = 50


class Beanstalkd(BareQueue):
    """Bare workers; the log is synced every 50 ms."""

    name: ClassVar[str] = "beanstalkd"
    title: ClassVar[str] = "beanstalkd"
    package: ClassVar[str] = "beanstalkd"
    program: ClassVar[str] = "beanstalkd"
    durable: ClassVar[str] = f"every {SYNC_MS} ms"
    note: ClassVar[str] = "bare workers: a loop around a socket; its log synced every 50 ms"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 10_000, "true": 3000, "latency": 500, "queue": 50_000}

    def options(self, place: Place, port: str) -> list[str]:
        """What it writes stays in the place's folder."""
        return ["-l", "127.0.0.1", "-p", port, "-b", str(place.folder), "-f", str(SYNC_MS)]


class Link:
    """A connection: lines out, lines and bodies in."""

    def __init__(self, port: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", int(port)))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._sock.makefile("rb")

    def send(self, *texts: bytes) -> None:
        """In one system call."""
        self._sock.sendall(b"".join(texts))

    def answer(self) -> list[bytes]:
        """The words of an answer's line."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("beanstalkd closed the connection")
        return line.split()

    def reserved(self) -> tuple[bytes, bytes]:
        """The answer to a reserve: the job's number and body."""
        word, number, size = self.answer()
        assert word == b"RESERVED", word
        return number, self._file.read(int(size) + 2)[:-2]


def put(body: bytes) -> bytes:
    """Of middle priority, at once, with a minute to run."""
    return b"put 1024 0 60 %d\r\n%b\r\n" % (len(body), body)


def work(port: str) -> None:
    """A worker: reserve a job, do it, put its result, delete it; a system call each way for all of that."""
    link = Link(port)
    link.send(b"use results\r\nwatch tasks\r\nignore default\r\nreserve\r\n")
    for _ in range(3):
        link.answer()
    while True:
        number, body = link.reserved()
        if body == b"true":
            run_true(0)
        link.send(put(body), b"delete %b\r\nreserve\r\n" % number)
        link.answer()
        link.answer()


def run(link: Link, body: bytes, tasks: int) -> None:
    """Submit, then take all results."""
    queue(link, tasks, body)
    for start in range(0, tasks, WINDOW):
        count = min(WINDOW, tasks - start)
        link.send(b"reserve\r\n" * count)
        numbers = [link.reserved()[0] for _ in range(count)]
        link.send(*(b"delete %b\r\n" % number for number in numbers))
        for _ in range(count):
            link.answer()


def queue(link: Link, tasks: int, body: bytes = b"noop") -> None:
    """Submit, and wait until all are accepted."""
    for start in range(0, tasks, WINDOW):
        count = min(WINDOW, tasks - start)
        link.send(put(body) * count)
        for _ in range(count):
            assert link.answer()[0] == b"INSERTED"


def drive(port: str, workers: str) -> None:
    """The client."""
    link = Link(port)
    link.send(b"use tasks\r\nwatch results\r\nignore default\r\n")
    for _ in range(3):
        link.answer()
    if int(workers):
        run(link, b"noop", 1000)
    serve_bare(partial(run, link), partial(queue, link))


if __name__ == "__main__":
    dispatch(work, drive)
