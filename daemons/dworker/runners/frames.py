"""The format of the runner `python`: frames, see `interpreter.py`, which is the other end. Sans-I/O; bounded memory."""

import marshal
from typing import Any, Final

from dworker.runners import interpreter
from dworker.runners.framing import LINE_BYTES_MAX, Answer, Answers, FramingError, Waiting, newest_within
from dworker.runners.interpreter import HEADER

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
        leases: list[int] = []
        results: list[bytes] = []
        failures: list[Answer] = []
        start, self._wanted = 0, HEADER.size
        while len(data) - start >= HEADER.size:
            kind, code, size = HEADER.unpack_from(data, start)
            fault = self._fault(kind, size)
            if fault:
                raise FramingError(fault, (leases, results, failures))
            end = start + HEADER.size + size
            if end > len(data):
                self._wanted = end - start
                break
            lease, body = self._next(), data[end - size : end]
            start = end
            if kind == interpreter.RESULT:
                leases.append(lease)
                results.append(body)
            else:
                self.may_end = kind >= interpreter.LAST
                reason = _REASONS[kind & ~interpreter.LAST]
                failures.append(Answer(lease, b"", reason, body, code if reason == "exit" else None))
        self._partial += data[start:]
        return leases, results, failures

    def _fault(self, kind: int, size: int) -> str:
        """A sentence for what is no answer: the task's code shares the process, and so could write anything."""
        if self._first == len(self._unanswered):
            return "The interpreter answered a task that it was not given."
        if size > self._bytes_max or (kind != interpreter.RESULT and kind & ~interpreter.LAST not in _REASONS):
            return "The interpreter answered something that is no answer; its descriptors were tampered with."
        return ""

    def _next(self) -> int:
        lease = self._unanswered[self._first]
        self._first += 1
        if self._first == len(self._unanswered) or self._first > 1024:
            del self._unanswered[: self._first]
            self._first = 0
        return lease
