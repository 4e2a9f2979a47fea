"""A simulated machine without a certificate: it asks for one, by a token or until a person has compared its words."""

from collections.abc import Callable
from typing import Final

from districomp import wire
from districomp.messages import PROTOCOL_VERSION, AnyMessage, Authorities, Enrol, Enrolled, Goodbye, HelloGuest, Pending
from districomp.messages import Refused as RefusedMessage
from districomp.tokens import pairing_words
from tests.sim.network import End
from tests.sim.promise import promise
from tests.sim.stage import Stage

PATIENCE_S: Final = 20.0
"""So long a guest waits for whatever comes next, then it connects anew."""
BACKOFF_S: Final = 2.0


class Papers:
    """What a machine has on its disk: its id (or the one it wants), its certificate, a token."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.certificate = b""
        self.secret = b""
        self.words = ""
        """What a pending machine shows on its console."""


class Guest:
    """One attempt after the other to become a worker."""

    shown = b""

    def __init__(self, stage: Stage, papers: Papers, slots: int, enrolled: Callable[[], None]) -> None:
        self.stage = stage
        self.papers = papers
        self.slots = slots
        self.end: End | None = None
        self.is_alive = True
        self._enrolled = enrolled
        self._decoder = wire.Decoder()
        self._csr = b""
        self._authority = b""
        self._sent_secret = b""
        self._turn = 0

    def dial(self) -> None:
        """Try to connect."""
        if self.is_alive and self.end is None:
            self.stage.network.dial(self)

    def stop(self) -> None:
        """The process ends."""
        self.is_alive = False
        self.papers.words = ""
        if self.end is not None:
            self.end.cut(is_seen_here=False, is_seen_there=True)

    def on_open(self, end: End) -> None:
        """Greet: who is there?"""
        if not self.is_alive or self.end is not None:
            end.close()
            return
        self.end, self._decoder = end, wire.Decoder()
        self._decoder.greeted()
        end.send(wire.encode(HelloGuest(PROTOCOL_VERSION, "sim")))
        self._wait()

    def on_refused(self) -> None:
        """Nobody is there."""
        self._back_off()

    def on_closed(self, end: End) -> None:
        """Once more."""
        if end is self.end:
            self.end = None
            self.papers.words = ""
            self._back_off()

    def on_bytes(self, end: End, data: bytes) -> None:
        """What the coordinator says."""
        for message in self._decoder.receive(data) if end is self.end and self.is_alive else []:
            if end is self.end:
                self._wait()
                self._on_message(end, message)

    def _on_message(self, end: End, message: AnyMessage) -> None:
        match message:
            case Authorities():
                self._authority = message.authorities[0]
                self._ask(end)
            case Pending():
                promise(not self._sent_secret, "a worker with a token was made to wait for a person")
                self.papers.words = pairing_words(self._authority, self._csr, message.nonce)
                self.stage.tally.count("pending worker")
            case Enrolled():
                self.end = None
                end.close()
                self.papers.worker, self.papers.certificate = message.identity, message.certificate
                self.papers.secret, self.papers.words = b"", ""
                self._enrolled()
            case RefusedMessage():
                if message.code.startswith("token_"):
                    self.papers.secret = b""
                else:
                    promise(message.code in ("degraded", "busy"), f"a guest is refused: {message.code}, {message.text}")
            case Goodbye():
                end.close()
                self.on_closed(end)
            case _:
                raise AssertionError(f"a guest was sent {message}")

    def _ask(self, end: End) -> None:
        if not self._csr or self.stage.random.random() < 0.5:  # a new key, as after a restart
            self._csr = self.stage.random.randbytes(16)
        papers = self.papers
        self._sent_secret = papers.secret
        end.send(
            wire.encode(
                Enrol(1, "worker", self._csr, papers.secret, papers.worker, f"name of {papers.worker}", self.slots)
            )
        )

    def _wait(self) -> None:
        self._turn += 1
        self.stage.loop.after(PATIENCE_S, self._lose_patience, self._turn)

    def _lose_patience(self, turn: int) -> None:
        if turn == self._turn and self.end is not None and self.is_alive:
            end = self.end
            end.close()
            self.on_closed(end)

    def _back_off(self) -> None:
        self.stage.loop.after(self.stage.random.uniform(0.0, BACKOFF_S), self.dial)
