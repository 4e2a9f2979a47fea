"""A person in the simulator who runs the cluster: makes tokens, compares words, revokes. Asks until it has an answer."""

from collections.abc import Callable
from typing import Final

import msgspec

from dcoord.core.rights import Principal
from districomp import wire
from districomp.documents import TokenDocument
from districomp.messages import (
    PROTOCOL_VERSION,
    Admit,
    AnyMessage,
    CreateToken,
    Goodbye,
    HelloClient,
    Message,
    OpenEnrolment,
    Refused,
    Reply,
    Revoke,
    RevokeToken,
    RotateAuthority,
    Welcome,
)
from districomp.tokens import parse_token
from tests.sim.guest import Papers
from tests.sim.network import End
from tests.sim.promise import promise
from tests.sim.stage import Stage

PATIENCE_S: Final = 20.0
LOOK_S: Final = 1.0
"""So often it walks past the machines that are pending."""
TOKEN_SHARE: Final = 0.7
"""So many of the machines are given a token; a person lets the others in."""

Then = Callable[[Reply], None]


class Errand(msgspec.Struct):
    """Something to be asked until it is answered. `may_fail`: refusals that are an answer too."""

    make: Callable[[int], Message]
    then: Then | None = None
    may_fail: tuple[str, ...] = ()


class Administrator:
    """One connection on the control socket, made again whenever it breaks."""

    shown = Principal("admin", user="administrator")

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.loop = stage.loop
        self.random = stage.random
        self.machines: list[Papers] = []
        self.tokens: list[str] = []
        """Ids of tokens that were made."""
        self.end: End | None = None
        self._is_welcome = False
        self._is_dialing = False
        self._decoder = wire.Decoder()
        self._errands: list[Errand] = []
        self._asked: dict[int, Errand] = {}
        self._admitting: dict[str, None] = {}
        self._request = 0
        self._turn = 0

    def start(self, machines: list[Papers]) -> None:
        """Give tokens to most of these, in small groups, and look after all of them from now on."""
        self.machines = machines
        chosen = [papers for papers in machines if self.random.random() < TOKEN_SHARE]
        size = max(3, len(machines) // 20)
        while chosen:
            count = self.random.randint(1, size)
            self.give_token(chosen[:count])
            chosen = chosen[count:]
        self._look()

    def give_token(self, machines: list[Papers]) -> None:
        """A new token for these: sometimes one that is used up too soon, or ends too soon."""
        uses = self.random.choice((None, len(machines), max(1, len(machines) - 1)))
        expires_s = self.random.choice((1e6, 1e6, self.random.uniform(0.1, 2.0) * self.stage.lease_s))

        def give(reply: Reply) -> None:
            document = msgspec.msgpack.decode(reply.documents[0], type=TokenDocument)
            promise(document.token is not None, "a token was made, and is not shown")
            self.tokens.append(document.id)
            for papers in machines:
                if not papers.certificate:
                    papers.secret = parse_token(document.token or "").secret

        self._ask(Errand(lambda request: CreateToken(request, "worker", expires_s, uses), give))

    def revoke(self, worker: str) -> None:
        """This worker is not to be trusted any more."""
        remove = self.random.random() < 0.3
        self._ask(Errand(lambda request: Revoke(request, worker, remove), may_fail=("unknown_worker",)))

    def revoke_token(self, token: str) -> None:
        """Nor is whoever came with this token."""
        self._ask(Errand(lambda request: RevokeToken(request, token)))

    def rotate(self, overlap_s: float) -> None:
        """A new authority."""
        self._ask(Errand(lambda request: RotateAuthority(request, overlap_s)))

    def _look(self) -> None:
        """Let in whoever shows words; now and then give a token to a machine that has none, or open the door to all."""
        for papers in self.machines:
            words = papers.words
            if not words or words in self._admitting:
                continue
            dice = self.random.random()
            if dice < 0.1:
                self.give_token([papers])
            elif dice < 0.2:
                self._ask(Errand(lambda request: OpenEnrolment(request, self.stage.lease_s / 10)))
            else:
                self._admit(papers.worker, words)
        self.loop.after(LOOK_S, self._look)

    def _admit(self, worker: str, words: str) -> None:
        self._admitting[words] = None
        # The machine may have gone and come again meanwhile, with other words.
        errand = Errand(lambda request: Admit(request, worker, words), may_fail=("unknown_worker", "bad_words"))
        self._ask(errand)

    # ---- the connection ----

    def _ask(self, errand: Errand) -> None:
        self._errands.append(errand)
        self._send_all()

    def _send_all(self) -> None:
        if self.end is None or not self._is_welcome:
            self._connect()
            return
        errands, self._errands = self._errands, []
        for errand in errands:
            self._request += 1
            self._asked[self._request] = errand
            self.end.send(wire.encode(errand.make(self._request)))
        self._wait()

    def _connect(self) -> None:
        if self.end is None and not self._is_dialing:
            self._is_dialing = True
            self.stage.network.dial(self)

    def on_open(self, end: End) -> None:
        """Greet."""
        self._is_dialing = False
        self.end, self._is_welcome, self._decoder = end, False, wire.Decoder()
        self._decoder.greeted()
        end.send(wire.encode(HelloClient(PROTOCOL_VERSION, "administrator")))
        self._wait()

    def on_refused(self) -> None:
        """Nobody is there: later."""
        self._is_dialing = False
        self.loop.after(self.random.uniform(0.1, 2.0), self._connect)

    def on_closed(self, end: End) -> None:
        """What has no answer is asked again."""
        if end is self.end:
            self.end, self._is_welcome = None, False
            self._errands += self._asked.values()
            self._asked.clear()
            self.loop.after(self.random.uniform(0.1, 2.0), self._connect)

    def on_bytes(self, end: End, data: bytes) -> None:
        """Answers."""
        for message in self._decoder.receive(data) if end is self.end else []:
            if end is self.end:
                self._on_message(end, message)

    def _on_message(self, end: End, message: AnyMessage) -> None:
        match message:
            case Welcome():
                self._is_welcome = True
                self._send_all()
            case Reply():
                errand = self._asked.pop(message.request)
                if errand.then is not None:
                    errand.then(message)
            case Refused():
                errand = self._asked.pop(message.request)
                if message.code == "degraded":
                    self.loop.after(self.random.uniform(0.5, 2.0), self._ask, errand)
                else:
                    promise(message.code in errand.may_fail, f"an errand is refused: {message.code}, {message.text}")
            case Goodbye():
                end.close()
                self.on_closed(end)
            case _:
                raise AssertionError(f"an administrator was sent {message}")

    def _wait(self) -> None:
        self._turn += 1
        self.loop.after(PATIENCE_S, self._lose_patience, self._turn)

    def _lose_patience(self, turn: int) -> None:
        if turn == self._turn and self.end is not None and (self._asked or not self._is_welcome):
            end = self.end
            end.close()
            self.on_closed(end)
