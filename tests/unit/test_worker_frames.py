"""The conversation with a Python interpreter: tasks in, answers out, split anywhere, forged or not."""

import marshal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.model import STDERR_TAIL_BYTES
from dworker.runners import interpreter
from dworker.runners.frames import RESULT_BYTES_MAX, Frames, result_bytes_max
from dworker.runners.framing import Answer, FramingError, Waiting
from dworker.runners.interpreter import HEADER
from dworker.runners.shelf import Untold


def frame(kind: int, body: bytes = b"", code: int = 0) -> bytes:
    return HEADER.pack(kind, code, len(body)) + body


def feed(framing: Frames, data: bytes, step: int) -> tuple[list[int], list[bytes], list[Answer]]:
    leases: list[int] = []
    results: list[bytes] = []
    failures: list[Answer] = []
    for start in range(0, len(data), step):
        more = framing.receive(data[start : start + step])
        leases += more[0]
        results += more[1]
        failures += more[2]
    return leases, results, failures


def asked(count: int, bytes_max: int | None = None) -> Frames:
    framing = Frames(bytes_max)
    framing.encode([Waiting(100 + number, 7, number, b"x") for number in range(count)])
    return framing


def test_params_go_before_the_tasks_that_they_are_of() -> None:
    one: dict[str, Any] = {"n": 1}
    two: dict[str, Any] = {"n": 2}
    framing = Frames(None)
    tasks = [(b"a", one), (b"b", one), (b"c", two)]
    data = framing.encode([Waiting(1, 1, 1, body, params) for body, params in tasks])
    given_one, given_two = (frame(interpreter.PARAMS, marshal.dumps(params)) for params in (one, two))
    task_a, task_b, task_c = (frame(interpreter.TASK, body) for body, _ in tasks)
    assert data == given_one + task_a + task_b + given_two + task_c
    assert framing.encode([Waiting(4, 1, 4, b"d", two)]) == frame(interpreter.TASK, b"d")


@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(1, 50))
def test_answers_in_order_however_they_are_split(bodies: list[bytes], step: int) -> None:
    framing = asked(len(bodies))
    data = b"".join(frame(interpreter.RESULT, body) for body in bodies)
    assert feed(framing, data, step) == ([100 + number for number in range(len(bodies))], bodies, [])
    assert not framing.may_end


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_failures(step: int) -> None:
    framing = asked(6)
    data = b"".join(
        [
            frame(interpreter.FAILED, b"traceback", 3),
            frame(interpreter.RESULT, b"fine", 9),
            frame(interpreter.INVALID, b"None"),
            frame(interpreter.TOO_LARGE, b"large"),
            frame(interpreter.NOT_STARTED | interpreter.LAST, b"no module"),
        ]
    )
    assert not framing.may_end
    leases, results, failures = feed(framing, data, step)
    assert (leases, results) == ([101], [b"fine"])
    assert failures == [
        Answer(100, b"", "exit", b"traceback", 3),
        Answer(102, b"", "output_invalid", b"None"),
        Answer(103, b"", "result_too_large", b"large"),
        Answer(104, b"", "not_started", b"no module"),
    ]
    assert framing.may_end, "it said that it would"


@pytest.mark.parametrize(
    "data",
    [
        frame(interpreter.RESULT) * 2,
        frame(77),
        frame(interpreter.RESULT | interpreter.LAST),
        HEADER.pack(interpreter.RESULT, 0, interpreter.SAID_BYTES + 1),
        HEADER.pack(interpreter.FAILED, 0, 2**32 - 1),
    ],
)
def test_what_no_interpreter_of_ours_says(data: bytes) -> None:
    with pytest.raises(FramingError, match=r"tampered|not given"):
        asked(1, 10).receive(data)


@given(st.binary(max_size=200))
def test_whatever_is_written_is_an_answer_or_an_error(data: bytes) -> None:
    framing = asked(5, 50)
    try:
        leases, results, _ = framing.receive(data)
    except FramingError as error:
        assert str(error)
    else:
        assert len(leases) == len(results)


@given(st.data())
def test_what_is_overheard_counts_once(data: st.DataObject) -> None:
    """Answers lie in the shelf, then in the pipe; looked at in between, at whatever moment."""
    count = data.draw(st.integers(1, 30))
    framing = asked(count)
    frames = [frame(interpreter.RESULT, b"%d" % number) for number in range(count)]
    heard: list[tuple[int, bytes]] = []
    written, pipe = 0, b""
    for number in range(1, count + 1):
        if number < count and data.draw(st.booleans()):
            heard += zip(*framing.overhear(Untold(number, written, b"".join(frames[written:number])))[:2], strict=True)
        if number == count or data.draw(st.booleans()):
            # A look in the middle of a flush: some is in the pipe already, the shelf does not say so yet.
            pipe += b"".join(frames[written:number])
            size = data.draw(st.integers(0, len(pipe)))
            heard += zip(*framing.receive(pipe[:size])[:2], strict=True)
            pipe = pipe[size:]
            heard += zip(*framing.overhear(Untold(number, written, b"".join(frames[written:number])))[:2], strict=True)
            written = number
    heard += zip(*framing.receive(pipe)[:2], strict=True)
    heard += zip(*framing.overhear(Untold(count, written, b""))[:2], strict=True)
    assert heard == [(100 + number, b"%d" % number) for number in range(count)]


def test_the_task_in_hand_is_spared() -> None:
    framing = asked(5)
    frames = [frame(interpreter.RESULT, b"%d" % number) for number in range(3)]
    assert framing.overhear(Untold(3, 0, b"".join(frames)), spare_newest=True)[0] == [100, 101]
    assert framing.overhear(Untold(2, 0, b"".join(frames)))[0] == [], "more answers than tasks begun"
    assert framing.overhear(Untold(3, 4, frame(interpreter.RESULT)))[0] == [], "the pipe comes first"
    assert framing.overhear(Untold(3, 0, b"".join(frames)))[0] == [102]
    assert framing.receive(b"".join(frames) + frame(interpreter.RESULT))[0] == [103]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**44), st.binary(max_size=100))
def test_whatever_lies_in_the_shelf_is_an_answer_or_an_error(begun: int, written: int, data: bytes) -> None:
    framing = asked(5, 50)
    try:
        leases, results, failures = framing.overhear(Untold(begun, written, data))
    except FramingError as error:
        assert str(error)
    else:
        assert len(leases) == len(results)
        assert len(leases) + len(failures) <= begun


def test_it_goes_on_after_thousands() -> None:
    framing = Frames(None)
    for number in range(3000):
        framing.encode([Waiting(2 * number, 1, 0, b""), Waiting(2 * number + 1, 1, 0, b"")])
        assert framing.receive(frame(interpreter.RESULT))[0] == [number]


def test_limits() -> None:
    assert (result_bytes_max(None), result_bytes_max(5)) == (RESULT_BYTES_MAX, 5)
    assert result_bytes_max(10**12) == RESULT_BYTES_MAX
    assert interpreter.SAID_BYTES == STDERR_TAIL_BYTES
