"""A client in the simulator: submits, submits again when it has heard nothing, cancels, and reads results to the end."""

from typing import Final

import msgspec

from dcoord.core.rights import Principal
from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    Cancel,
    Goodbye,
    HelloClient,
    Message,
    Refused,
    Reply,
    ResultRows,
    Results,
    Welcome,
)
from districomp.model import DONE, QUEUED
from districomp.outcome import Outcome
from tests.sim.network import End
from tests.sim.promise import promise
from tests.sim.stage import Stage
from tests.sim.submission import Submission

PATIENCE_S: Final = 20.0
"""A request without an answer for so long, and the client connects anew."""
POLL_S: Final = 2.0


class Reading:
    """A job whose rows the client reads."""

    def __init__(self, job: int, submission: Submission) -> None:
        self.job = job
        self.submission = submission
        self.after = 0
        self.states = bytearray(submission.count)
        self.is_ended = False
        self.is_due = False
        """Whether the next question is scheduled."""


class Client:
    """One client with one connection, made again whenever it breaks."""

    def __init__(self, stage: Stage, user: str, wanted: list[Submission]) -> None:
        self.loop = stage.loop
        self.random = stage.random
        self.network = stage.network
        self.oracle = stage.oracle
        self.tally = stage.tally
        self.wanted = wanted
        self.shown = Principal("submit", user=user)
        self.readings: dict[str, Reading] = {}
        self.end: End | None = None
        self.is_welcome = False
        self.cuts_wanted = 0
        """So many of the next submissions lose their connection."""
        self._decoder = wire.Decoder()
        self._request = 0
        self._asked: dict[int, tuple[str, Submission]] = {}
        """Requests of this connection without an answer."""
        self._connection = 0
        self._is_dialing = False
        for submission in wanted:
            self.loop.at(submission.due, self._submit, submission)

    def want(self, submission: Submission) -> None:
        """One more submission."""
        self.wanted.append(submission)
        self.loop.at(submission.due, self._submit, submission)

    def is_done(self) -> bool:
        """Whether everything that this client wants has come to its end."""
        if len(self.readings) < len(self.wanted):
            return False
        cancels = [submission.cancel for submission in self.wanted if submission.cancel is not None]
        return all(reading.is_ended for reading in self.readings.values()) and all(c.is_answered for c in cancels)

    # ---- the connection ----

    def _connect(self) -> None:
        if self.end is None and not self._is_dialing:
            self._is_dialing = True
            self.network.dial(self)

    def on_open(self, end: End) -> None:
        """Greet."""
        self._is_dialing = False
        self.end, self.is_welcome = end, False
        self._decoder = wire.Decoder()
        self._decoder.greeted()
        self._connection += 1
        self._asked.clear()
        end.send(wire.encode(HelloClient(PROTOCOL_VERSION, "sim")))
        self.loop.after(PATIENCE_S, self._lose_patience, self._connection, 0)

    def on_refused(self) -> None:
        """Nobody is there: later."""
        self._is_dialing = False
        self.loop.after(self.random.uniform(0.1, 3.0), self._connect)

    def on_closed(self, end: End) -> None:
        """What was asked is asked again on the next connection."""
        if end is not self.end:
            return
        self.end, self.is_welcome = None, False
        self._asked.clear()
        self.loop.after(self.random.uniform(0.1, 3.0), self._connect)

    def _break(self, connection: int) -> None:
        """The connection breaks while a submission is on its way, or has just been answered."""
        if self.end is not None and connection == self._connection and not self.end.is_cut:
            self.tally.count("client cut")
            self.end.cut(is_seen_here=True, is_seen_there=self.random.random() < 0.7)
        else:
            self.cuts_wanted += 1

    def _lose_patience(self, connection: int, request: int) -> None:
        if self.end is None or connection != self._connection:
            return
        if (request in self._asked) if request else not self.is_welcome:
            end = self.end
            end.close()
            self.on_closed(end)

    # ---- requests ----

    def _ask(self, kind: str, submission: Submission, messages: list[Message]) -> None:
        assert self.end is not None
        self._asked[self._request] = kind, submission
        self.loop.after(PATIENCE_S, self._lose_patience, self._connection, self._request)
        for place, message in enumerate(messages):
            # Other messages come between the parts of a long submission, and so may the end of the connection.
            self.loop.after(0.002 * place, self._send, self.end, wire.encode(message))

    def _send(self, end: End, data: bytes) -> None:
        if end is self.end:
            end.send(data)

    def _is_asking(self, kind: str, submission: Submission) -> bool:
        return any(asked[0] == kind and asked[1] is submission for asked in self._asked.values())

    def _submit(self, submission: Submission) -> None:
        if submission.request_id in self.readings or self._is_asking("submit", submission):
            return
        if not self.is_welcome:
            self._connect()
            return
        if submission.times_sent:
            self.tally.count("submission sent again")
        submission.times_sent += 1
        self._request += 1
        self._ask("submit", submission, list(submission.messages(self._request)))
        if self.cuts_wanted:
            self.cuts_wanted -= 1
            self.loop.after(self.random.uniform(0.0, 3.0) * self.network.rates.latency_s, self._break, self._connection)

    def _cancel(self, reading: Reading) -> None:
        cancel = reading.submission.cancel
        if cancel is None or cancel.is_answered or self._is_asking("cancel", reading.submission):
            return
        cancel.is_due = True
        if not self.is_welcome:
            self._connect()
            return
        self._request += 1
        cancel.is_sent = True
        self._ask("cancel", reading.submission, [Cancel(self._request, reading.job, cancel.indexes)])

    def _read(self, reading: Reading) -> None:
        if reading.is_ended or self._is_asking("read", reading.submission):
            return
        if not self.is_welcome:
            self._connect()
            return
        self._request += 1
        self._ask("read", reading.submission, [Results(self._request, reading.job, reading.after, wait=False)])

    # ---- answers ----

    def on_bytes(self, end: End, data: bytes) -> None:
        """Answers of the coordinator."""
        if end is not self.end:
            return
        for message in self._decoder.receive(data):
            self._on_message(message)
            if end is not self.end:
                return

    def _on_message(self, message: AnyMessage) -> None:
        match message:
            case Welcome():
                self.is_welcome = True
                for submission in self.wanted:
                    if submission.due <= self.loop.now:
                        self._submit(submission)
                for reading in list(self.readings.values()):
                    self._read(reading)
                    if reading.submission.cancel is not None and reading.submission.cancel.is_due:
                        self._cancel(reading)
            case Goodbye():
                if self.end is not None:
                    end = self.end
                    end.close()
                    self.on_closed(end)
            case Accepted() | Refused() | Reply() | ResultRows():
                asked = self._asked.pop(message.request, None)
                promise(asked is not None, f"a client is answered {message} to no question")
                if asked is not None:
                    self._on_answer(asked[0], asked[1], message)
            case _:
                raise AssertionError(f"a client was sent {message}")

    def _on_answer(self, kind: str, submission: Submission, message: AnyMessage) -> None:
        match message:
            case Accepted():
                promise(kind == "submit", f"{kind} was answered with {message}")
                self.oracle.accepted(submission, message.job, message.tasks)
                reading = self.readings.setdefault(submission.request_id, Reading(message.job, submission))
                self._read(reading)
                if submission.cancel is not None:
                    self.loop.after(submission.cancel.after_s, self._cancel, reading)
            case Refused():
                promise(message.code == "degraded", f"{kind} was refused: {message.code}, {message.text}")
                again = self._submit if kind == "submit" else self._cancel_again
                self.loop.after(self.random.uniform(0.5, 3.0), again, submission)
            case Reply():
                promise(kind == "cancel", f"{kind} was answered with {message}")
                self._on_cancelled(submission)
            case ResultRows():
                promise(kind == "read", f"{kind} was answered with {message}")
                self._on_rows(self.readings[submission.request_id], message)

    def _cancel_again(self, submission: Submission) -> None:
        self._cancel(self.readings[submission.request_id])

    def _on_cancelled(self, submission: Submission) -> None:
        cancel = submission.cancel
        assert cancel is not None
        cancel.is_answered = True
        self.tally.count("cancelled task" if cancel.indexes else "cancelled job")
        self.oracle.cancel_answered(self.readings[submission.request_id].job, cancel.indexes)

    def _on_rows(self, reading: Reading, answer: ResultRows) -> None:
        for packed in answer.rows:
            row = msgspec.msgpack.decode(packed, type=Outcome)
            promise(row.serial == reading.after + 1, f"job {reading.job}: row {row.serial} comes after {reading.after}")
            reading.after = row.serial
            for place, index in enumerate(row.indexes):
                promise(reading.states[index] == QUEUED, f"task {reading.job}.{index} was told to have ended twice")
                reading.states[index] = row.states[place] if row.states else DONE
            if row.sweep is not None:
                reading.states = reading.states.replace(bytes((QUEUED,)), bytes((row.sweep,)))
        promise(answer.after == reading.after, f"job {reading.job}: rows up to {reading.after}, `after` {answer.after}")
        if answer.ended:
            reading.is_ended = True
            self.oracle.results_read(reading.job, bytes(reading.states))
        elif not reading.is_due:
            reading.is_due = True
            self.loop.after(0.01 if answer.rows else self.random.uniform(0.5, 1.5) * POLL_S, self._poll, reading)

    def _poll(self, reading: Reading) -> None:
        reading.is_due = False
        self._read(reading)
