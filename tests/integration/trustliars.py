"""Who only claims to be a coordinator, who says again what one said, and who stands between: each keeps every byte it is sent."""

import contextlib
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Self

from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Assign,
    Authorities,
    Define,
    Enrol,
    HelloGuest,
    HelloWorker,
    JobSpec,
    Message,
    Pending,
    Welcome,
)
from districomp.taskdef import Definition, encode_definition
from tests.integration.trustpeers import LIMIT_S, Where, hello

MARK = "evidence"


class Liar:
    """Listens, says whatever makes a worker go on, and keeps every byte that it is sent once the handshake is over.

    context: None speaks plain TCP. claims: what it says its authorities are. folder: where a task of it leaves a trace.
    """

    def __init__(self, context: ssl.SSLContext | None, cluster: str, claims: list[bytes], folder: Path) -> None:
        self.heard: list[bytes] = []
        self.tries = 0
        self.refusals: list[str] = []
        self.evidence = folder / MARK
        self._context = context
        self._cluster = cluster
        self._claims = claims
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def where(self) -> Where:
        host, port = self._listener.getsockname()
        return host, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(LIMIT_S)
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)

    def told(self) -> list[bytes]:
        """What it was told when TLS was over and done with, a connection each. In plain: what is no part of a handshake."""
        return list(self.heard) if self._context is not None else [_after_the_handshake(data) for data in self.heard]

    def messages(self) -> list[AnyMessage]:
        """The same as messages."""
        found: list[AnyMessage] = []
        for data in self.told():
            decoder = wire.Decoder()
            decoder.greeted()
            found += decoder.receive(data)
        return found

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            plain.settimeout(LIMIT_S)
            self._open.append(plain)
            thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        place = len(self.heard)
        self.heard.append(b"")
        try:
            with self._secured(plain) as sock:
                self._talk(sock, place)
        except OSError as error:
            self.refusals.append(str(error))
        finally:
            plain.close()
            self.tries += 1

    def _secured(self, plain: socket.socket) -> socket.socket:
        if self._context is None:
            return plain
        secured = self._context.wrap_socket(plain, server_side=True)
        self._open.append(secured)
        return secured

    def _talk(self, sock: socket.socket, place: int) -> None:
        if self._context is None:
            # Nobody who expects TLS says a thing that is a frame: do not wait for one.
            sock.sendall(b"".join(wire.encode(message) for message in self._answers(hello("w"))))
        decoder = wire.Decoder()
        while data := sock.recv(65536):
            self.heard[place] += data
            if self._context is not None:
                for message in decoder.receive(data):
                    sock.sendall(b"".join(wire.encode(answer) for answer in self._answers(message)))

    def _answers(self, message: AnyMessage) -> list[Message]:
        if isinstance(message, HelloGuest):
            return [Authorities(self._cluster, "lab", self._claims)]
        if isinstance(message, Enrol):
            return [Pending(message.request, b"0" * 16)]
        if isinstance(message, HelloWorker):
            definition = Definition("lab", "digest", "", runner="command", argv=["touch", str(self.evidence)])
            return [
                Welcome(PROTOCOL_VERSION, self._cluster, "lab", 1, 15.0, "", time.time(), authorities=self._claims),
                Define("digest", encode_definition(definition)),
                JobSpec(1, "digest", {}),
                Assign(1, 1 << 40, [0]),
            ]
        return []


class Replayer(Liar):
    """Says what a real coordinator once said to somebody else, byte for byte."""

    def __init__(self, recorded: bytes, folder: Path) -> None:
        super().__init__(None, "", [], folder)
        self._recorded = recorded

    def _talk(self, sock: socket.socket, place: int) -> None:
        self.heard[place] += sock.recv(65536)
        sock.sendall(self._recorded)
        while data := sock.recv(65536):
            self.heard[place] += data


def _after_the_handshake(data: bytes) -> bytes:
    """The rest of what a TLS client sent, after its ClientHello and an alert (RFC 8446, 5.1)."""
    while data[:1] in (b"\x14", b"\x15", b"\x16"):
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return data


class Relay:
    """Stands between: passes every byte on, and keeps it. `up`: what was sent to the real one, a connection each."""

    def __init__(self, target: Where) -> None:
        self.up: list[bytearray] = []
        self.down: list[bytearray] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def where(self) -> Where:
        host, port = self._listener.getsockname()
        return host, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            self.up.append(bytearray())
            self.down.append(bytearray())
            for source, sink, record in ((near, far, self.up[-1]), (far, near, self.down[-1])):
                thread = threading.Thread(target=_pump, args=(source, sink, record), daemon=True)
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
