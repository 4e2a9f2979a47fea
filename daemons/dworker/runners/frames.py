"""The format of the runner `python`: frames, see `interpreter.py`, which is the other end. Sans-I/O; bounded memory."""

import marshal
from typing import Any, Final

from dworker.runners import interpreter
from dworker.runners.framing import LINE_BYTES_MAX, Answer, Answers, FramingError, Waiting, newest_within
from dworker.runners.interpreter import HEADER
from dworker.runners.shelf import Untold

RESULT_BYTES_MAX: Final = LINE_BYTES_MAX
_SLACK_BYTES: Final = interpreter.SAID_BYTES
_REASONS: Final = {
    interpreter.FAILED: "exit",
    interpreter.INVALID: "output_invalid",
    interpreter.TOO_LARGE: "result_too_large",
    interpreter.NOT_STARTED: "not_started",
}


def result_bytes_max(limit: int | None) -> int:
    """The largest result that the process may answer with, which has to be in memory."""
    return RESULT_BYTES_MAX if limit is None else min(limit, RESULT_BYTES_MAX)


def _size(waiting: Waiting, before: Waiting) -> int:
    """How many bytes were written for a task that came after another."""
    size = HEADER.size + len(waiting.data)
    return size if waiting.params is before.params else size + HEADER.size + len(marshal.dumps(waiting.params))


class Frames:
    """Framing of one interpreter."""

    no_answer = "The function ended its interpreter without a result (exit code 0)."

    def __init__(self, bytes_max: int | None) -> None:
        self._bytes_max = max(result_bytes_max(bytes_max), _SLACK_BYTES)
        self._partial = bytearray()
        self._wanted = HEADER.size
        self._unanswered: list[int] = []
        self._first = 0
        self._answered = 0
        self._ahead = 0  # so many answers were overheard, and are still to be received
        self._params: dict[str, Any] = {}
        self.may_end = False

    def refusal(self, waiting: Waiting) -> str:
        """See Framing."""
        return ""

    def encode(self, batch: list[Waiting]) -> bytes:
        """See Framing."""
        parts: list[bytes] = []
        for waiting in batch:
            if waiting.params is not self._params:
                self._params = waiting.params
                body = marshal.dumps(waiting.params)
                parts += (HEADER.pack(interpreter.PARAMS, 0, len(body)), body)
            parts += (HEADER.pack(interpreter.TASK, 0, len(waiting.data)), waiting.data)
            self._unanswered.append(waiting.lease)
        return b"".join(parts)

    def forget(self, hand: list[Waiting], unread: bytes, count: int) -> tuple[int, int]:
        """See Framing."""
        places = range(len(hand) - 1, len(hand) - 1 - count, -1)
        found = newest_within((_size(hand[place], hand[place - 1]) for place in places), len(unread))
        del self._unanswered[len(self._unanswered) - found[0] :]
        self._params = hand[len(hand) - found[0] - 1].params
        return found

    def receive(self, data: bytes) -> Answers:
        """See Framing."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return [], [], []
            data = bytes(self._partial)
            self._partial.clear()
        answers: Answers = [], [], []
        used, self._ahead, self._wanted = self._parse(data, answers, self._ahead, len(data))
        self._partial += data[used:]
        return answers

    def overhear(self, untold: Untold, *, spare_newest: bool = False) -> Answers:
        """See Framing."""
        answers: Answers = [], [], []
        known = self._answered - untold.written
        most = untold.begun - spare_newest - self._answered
        if known >= 0 and most > 0:  # else some that come before these are still in the pipe
            before = self._answered
            self._parse(untold.frames, answers, known, most)
            self._ahead += self._answered - before
        return answers

    def _parse(self, data: bytes, answers: Answers, known: int, most: int) -> tuple[int, int, int]:
        """Add up to `most` answers to `answers`, the first `known` passed over.

        How many bytes these were, how many are still to be passed over, how many bytes the next one has at least.
        """
        leases, results, failures = answers
        start, wanted = 0, HEADER.size
        while len(data) - start >= HEADER.size and most:
            kind, code, size = HEADER.unpack_from(data, start)
            fault = self._fault(kind, size, is_known=known > 0)
            if fault:
                raise FramingError(fault, answers)
            end = start + HEADER.size + size
            if end > len(data):
                wanted = end - start
                break
            body = data[end - size : end]
            start = end
            if known:
                known -= 1
                continue
            most -= 1
            lease = self._next()
            if kind == interpreter.RESULT:
                leases.append(lease)
                results.append(body)
            else:
                self.may_end = kind >= interpreter.LAST
                reason = _REASONS[kind & ~interpreter.LAST]
                failures.append(Answer(lease, b"", reason, body, code if reason == "exit" else None))
        return start, known, wanted

    def _fault(self, kind: int, size: int, *, is_known: bool) -> str:
        """A sentence for what is no answer: the task's code shares the process, and so could write anything."""
        if self._first == len(self._unanswered) and not is_known:
            return "The interpreter answered a task that it was not given."
        if size > self._bytes_max or (kind != interpreter.RESULT and kind & ~interpreter.LAST not in _REASONS):
            return "The interpreter answered something that is no answer; its descriptors were tampered with."
        return ""

    def _next(self) -> int:
        lease = self._unanswered[self._first]
        self._first += 1
        self._answered += 1
        if self._first == len(self._unanswered) or self._first > 1024:
            del self._unanswered[: self._first]
            self._first = 0
        return lease
