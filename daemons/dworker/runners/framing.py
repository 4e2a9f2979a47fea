"""How a lasting process is talked to, and the two formats of `stream` programs. Sans-I/O; bounded memory.

`lines`: the item without its newline in, one line out, in order. `json`: objects, answers in any order.
The format of `python` is in `frames.py`.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from districomp.model import task_text
from dworker.runners.shelf import Untold

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""An answer is held in memory until its newline; a longer one is refused."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """An attempt that is given to a process: its lease, its task, the item's bytes, the task's params."""

    lease: int
    job: int
    index: int
    data: bytes
    params: dict[str, Any] = {}


class Answer(NamedTuple):
    """What a program said about one attempt: a result, or a failure with its reason and a sentence or the program's words."""

    lease: int
    result: bytes
    reason: str = ""
    why: bytes = b""
    exit_code: int | None = None


Answers = tuple[list[int], list[bytes], list[Answer]]
"""Leases and results that succeeded, and the failures."""


class FramingError(Exception):
    """The program said something that cannot be an answer; a sentence. It cannot be trusted any further.

    `before`: what it had said until then, which counts; the oldest that is unanswered after that is to blame.
    """

    def __init__(self, text: str, before: Answers, reason: str = "output_invalid") -> None:
        super().__init__(text)
        self.before = before
        self.reason = reason


class Framing(Protocol):
    """One process' conversation."""

    may_end: bool
    """Whether it may end now of itself, with exit code 0: nobody is blamed for that."""
    no_answer: str
    """A sentence for one that ends so when it may not."""

    def refusal(self, waiting: Waiting) -> str:
        """Why an item cannot be put into this format, as a sentence; '' if it can."""

    def encode(self, batch: list[Waiting]) -> bytes:
        """The bytes to write for these; they wait for their answers from now on."""

    def forget(self, hand: list[Waiting], unread: bytes, count: int) -> tuple[int, int]:
        """How many of the newest `count` in `hand` lie wholly in the last bytes written, and how many of these bytes are theirs.

        `hand`: all that have no answer, in the order written, more than `count`. Those are not waited for any more.
        """

    def receive(self, data: bytes) -> Answers:
        """The answers that `data` completes. FramingError: end the process."""

    def overhear(self, untold: Untold, *, spare_newest: bool = False) -> Answers:
        """The answers among these that `receive` has not had; if it gets them later, it passes over them.

        `spare_newest`: not that of the task that was begun last, which has no answer for all that we know.
        """


NO_ANSWER: Final = "The program ended without an answer."


def newest_within(sizes: Iterable[int], total: int) -> tuple[int, int]:
    """How many of these sizes, the newest's first, fit into `total` together, and their sum."""
    count = used = 0
    for size in sizes:
        if used + size > total:
            break
        count, used = count + 1, used + size
    return count, used


class _Splitter:
    """Bytes to lines, with a bound on a line."""

    def __init__(self, bytes_max: int | None) -> None:
        self._partial = bytearray()
        self._bytes_max = min(LINE_BYTES_MAX, LINE_BYTES_MAX if bytes_max is None else bytes_max)

    def split(self, data: bytes) -> tuple[list[bytes], str]:
        """The lines that `data` completes, up to one that is too long; a sentence if there is one, else ''."""
        end = data.rfind(b"\n")
        if end < 0:
            self._partial += data
            return [], self._fault(len(self._partial))
        if self._partial:
            self._partial += data[:end]
            lines = bytes(self._partial).split(b"\n")
            self._partial.clear()
        else:
            lines = data[:end].split(b"\n")
        self._partial += data[end + 1 :]
        if len(max(lines, key=len)) > self._bytes_max:
            place = next(place for place, line in enumerate(lines) if len(line) > self._bytes_max)
            return lines[:place], self._fault(len(lines[place]))
        return lines, self._fault(len(self._partial))

    def _fault(self, size: int) -> str:
        return f"An answer has more than {self._bytes_max:,} bytes." if size > self._bytes_max else ""


class Lines:
    """`format: lines`."""

    no_answer = NO_ANSWER

    def __init__(self, bytes_max: int | None) -> None:
        self.may_end = False
        self._splitter = _Splitter(bytes_max)
        self._unanswered: list[int] = []
        self._first = 0

    def refusal(self, waiting: Waiting) -> str:
        """See Framing."""
        return "The item has a newline, and the definition's format is lines." if b"\n" in waiting.data else ""

    def encode(self, batch: list[Waiting]) -> bytes:
        """See Framing."""
        self._unanswered += [waiting.lease for waiting in batch]
        return b"\n".join([waiting.data for waiting in batch]) + b"\n"

    def forget(self, hand: list[Waiting], unread: bytes, count: int) -> tuple[int, int]:
        """See Framing."""
        found = newest_within((len(waiting.data) + 1 for waiting in hand[: -count - 1 : -1]), len(unread))
        del self._unanswered[len(self._unanswered) - found[0] :]
        return found

    def receive(self, data: bytes) -> Answers:
        """See Framing."""
        lines, fault = self._splitter.split(data)
        last = self._first + len(lines)
        if last > len(self._unanswered):
            waiting = self._unanswered[self._first :]
            # One line too many came after the last one's answer, if not earlier.
            before: Answers = waiting[:-1], lines[: len(waiting[:-1])], []
            text = f"The program wrote a line that answers no item: {_show(lines[len(waiting)])}. One line out for each in."
            raise FramingError(text, before)
        self.may_end = self.may_end or bool(lines)
        leases = self._unanswered[self._first : last]
        self._first = last
        if last > 1024 or last == len(self._unanswered):
            del self._unanswered[:last]
            self._first = 0
        if fault:
            raise FramingError(fault, (leases, lines, []), "result_too_large")
        return leases, lines, []

    def overhear(self, untold: Untold, *, spare_newest: bool = False) -> Answers:
        """See Framing: these programs write all that they answer."""
        return [], [], []


class _JsonAnswer(msgspec.Struct):
    """A line of `format: json`."""

    id: str
    result: str | msgspec.UnsetType = msgspec.UNSET
    result_base64: str | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET


_json_decoder = msgspec.json.Decoder(_JsonAnswer)


class Json:
    """`format: json`. The id is the task's, `JOB.INDEX`."""

    no_answer = NO_ANSWER

    def __init__(self, bytes_max: int | None) -> None:
        self.may_end = False
        # base64 and escapes take room: six bytes for one at the most.
        self._splitter = _Splitter(None if bytes_max is None else 6 * bytes_max + 1024)
        self._bytes_max = bytes_max
        self._params: dict[str, Any] = {}
        self._params_json = msgspec.Raw(b"{}")
        self._unanswered: dict[str, int] = {}

    def refusal(self, waiting: Waiting) -> str:
        """See Framing."""
        return ""

    def encode(self, batch: list[Waiting]) -> bytes:
        """See Framing."""
        for waiting in batch:
            self._unanswered[task_text(waiting.job, waiting.index)] = waiting.lease
        return b"".join(map(self._line, batch))

    def _line(self, waiting: Waiting) -> bytes:
        if waiting.params is not self._params:
            self._params, self._params_json = waiting.params, msgspec.Raw(msgspec.json.encode(waiting.params))
        fields: dict[str, object] = {"id": task_text(waiting.job, waiting.index)}
        try:
            fields["item"] = waiting.data.decode("utf-8")
        except UnicodeDecodeError:
            fields["item_base64"] = base64.b64encode(waiting.data).decode()
        fields["params"] = self._params_json
        return msgspec.json.encode(fields) + b"\n"

    def forget(self, hand: list[Waiting], unread: bytes, count: int) -> tuple[int, int]:
        """See Framing."""
        found = newest_within((len(self._line(waiting)) for waiting in hand[: -count - 1 : -1]), len(unread))
        for waiting in hand[len(hand) - found[0] :]:
            del self._unanswered[task_text(waiting.job, waiting.index)]
        return found

    def receive(self, data: bytes) -> Answers:
        """See Framing."""
        leases: list[int] = []
        results: list[bytes] = []
        failures: list[Answer] = []
        before = leases, results, failures
        lines, fault = self._splitter.split(data)
        for line in lines:
            try:
                answer = _json_decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                text = f"The program wrote a line that is not an answer: {error}: {_show(line)}."
                raise FramingError(text, before) from error
            lease = self._unanswered.pop(answer.id, None)
            if lease is None:
                text = f"The program answered the id {answer.id[:80]!r}, which it was not asked or has answered before."
                raise FramingError(text, before)
            self.may_end = True
            said = self._judge(lease, answer)
            if said.reason:
                failures.append(said)
            else:
                leases.append(lease)
                results.append(said.result)
        if fault:
            raise FramingError(fault, before, "result_too_large")
        return before

    def overhear(self, untold: Untold, *, spare_newest: bool = False) -> Answers:
        """See Framing: these programs write all that they answer."""
        return [], [], []

    def _judge(self, lease: int, answer: _JsonAnswer) -> Answer:
        given = [value for value in (answer.result, answer.result_base64, answer.error) if isinstance(value, str)]
        if len(given) != 1:
            return Answer(
                lease, b"", "output_invalid", b"The answer has not exactly one of result, result_base64, error."
            )
        text = given[0]
        if text is answer.error:
            return Answer(lease, b"", "exit", text.encode("utf-8", "replace"), 1)
        if text is answer.result:
            result = text.encode("utf-8", "replace")
        else:
            try:
                result = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                return Answer(lease, b"", "output_invalid", b"The answer's result_base64 is not base64.")
        if self._bytes_max is not None and len(result) > self._bytes_max:
            return Answer(
                lease,
                b"",
                "result_too_large",
                f"The result has {len(result):,} bytes, {self._bytes_max:,} are allowed.".encode(),
            )
        return Answer(lease, result)


def _show(line: bytes) -> str:
    return ascii(line[:80].decode("utf-8", "replace")) + ("..." if len(line) > 80 else "")
