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


def test_it_goes_on_after_thousands() -> None:
    framing = Frames(None)
    for number in range(3000):
        framing.encode([Waiting(2 * number, 1, 0, b""), Waiting(2 * number + 1, 1, 0, b"")])
        assert framing.receive(frame(interpreter.RESULT))[0] == [number]


def test_limits() -> None:
    assert (result_bytes_max(None), result_bytes_max(5)) == (RESULT_BYTES_MAX, 5)
    assert result_bytes_max(10**12) == RESULT_BYTES_MAX
    assert interpreter.SAID_BYTES == STDERR_TAIL_BYTES
