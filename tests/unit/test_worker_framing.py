"""The two formats of stream programs: items in, answers out, split anywhere."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dworker.runners.frames import Frames
from dworker.runners.framing import Answer, Framing, FramingError, Json, Lines, Waiting


def waiting(count: int, data: bytes = b"x") -> list[Waiting]:
    return [Waiting(100 + number, 7, number, data) for number in range(count)]


def feed(framing: Framing, data: bytes, step: int) -> tuple[list[int], list[bytes], list[Answer]]:
    leases: list[int] = []
    results: list[bytes] = []
    failures: list[Answer] = []
    for start in range(0, len(data), step):
        more = framing.receive(data[start : start + step])
        leases += more[0]
        results += more[1]
        failures += more[2]
    return leases, results, failures


def answers(*documents: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 50))
def test_lines_answer_in_order_however_they_are_split(lines: list[bytes], step: int) -> None:
    framing = Lines(None)
    if lines:
        assert framing.encode([Waiting(lease, 1, lease, line) for lease, line in enumerate(lines)]) == b"".join(
            line + b"\n" for line in lines
        )
    data = b"".join(line + b"\n" for line in lines)
    assert feed(framing, data, step) == (list(range(len(lines))), lines, [])


def test_lines_go_on_after_thousands() -> None:
    framing = Lines(None)
    for number in range(3000):
        framing.encode([Waiting(2 * number, 1, 0, b""), Waiting(2 * number + 1, 1, 0, b"")])
        assert framing.receive(b"a\n")[0] == [number]


def test_a_line_that_nobody_asked_for() -> None:
    framing = Lines(None)
    framing.encode(waiting(1))
    with pytest.raises(FramingError, match="answers no item: 'more'"):
        framing.receive(b"one\nmore\n")


def test_an_answer_over_the_limit() -> None:
    framing = Lines(5)
    framing.encode(waiting(2))
    assert framing.receive(b"12345\n")[1] == [b"12345"]
    with pytest.raises(FramingError, match="more than 5 bytes") as raised:
        framing.receive(b"123456")
    assert raised.value.reason == "result_too_large"


def test_a_newline_cannot_go_through_lines() -> None:
    assert "newline" in Lines(None).refusal(Waiting(1, 1, 1, b"a\nb"))
    assert Lines(None).refusal(Waiting(1, 1, 1, b"a b")) == ""
    assert Json(None).refusal(Waiting(1, 1, 1, b"a\nb")) == ""


def test_json_items() -> None:
    framing = Json(None)
    three = {"n": 3}
    batch = [
        Waiting(1, 42, 7, "caf\u00e9\n".encode(), three),
        Waiting(2, 42, 8, b"\xff", three),
        Waiting(3, 42, 9, b"", {"n": 4}),
        Waiting(4, 42, 10, b""),
    ]
    text, raw, other, none = map(json.loads, framing.encode(batch).splitlines())
    assert text == {"id": "42.7", "item": "caf\u00e9\n", "params": {"n": 3}}
    assert raw == {"id": "42.8", "item_base64": base64.b64encode(b"\xff").decode(), "params": {"n": 3}}
    assert (other["params"], none["params"]) == ({"n": 4}, {})


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_json_answers_in_any_order(step: int) -> None:
    framing = Json(10)
    framing.encode(waiting(6))
    data = answers(
        {"id": "7.5", "result": "five", "note": "more keys do no harm"},
        {"id": "7.0", "result_base64": "/w=="},
        {"id": "7.1", "error": "no good"},
        {"id": "7.2", "result_base64": "?"},
        {"id": "7.3"},
        {"id": "7.4", "result": "x" * 11},
    )
    leases, results, failures = feed(framing, data, step)
    assert (leases, results) == ([105, 100], [b"five", b"\xff"])
    assert [(one.lease, one.reason) for one in failures] == [
        (101, "exit"),
        (102, "output_invalid"),
        (103, "output_invalid"),
        (104, "result_too_large"),
    ]
    assert failures[0].why == b"no good"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hello\n", "not an answer"),
        (b"[]\n", "not an answer"),
        (b'{"id": 7}\n', "not an answer"),
        (b'{"id": "7.9", "result": ""}\n', "was not asked"),
        (b'{"id": "7.0", "result": "\xff"}\n', "not an answer"),
        (b"[" * 100_000 + b"\n", "not an answer"),
    ],
)
def test_json_nonsense(line: bytes, words: str) -> None:
    framing = Json(None)
    framing.encode(waiting(1))
    with pytest.raises(FramingError, match=words):
        framing.receive(line)


def test_an_id_is_answered_once() -> None:
    framing = Json(None)
    framing.encode(waiting(1))
    with pytest.raises(FramingError, match="answered before"):
        framing.receive(answers({"id": "7.0", "result": ""}, {"id": "7.0", "result": ""}))


@given(st.binary(max_size=200), st.booleans())
def test_whatever_a_program_writes_is_an_answer_or_an_error(data: bytes, json_format: bool) -> None:
    framing: Framing = Json(50) if json_format else Lines(50)
    framing.encode(waiting(5))
    try:
        leases, results, _ = framing.receive(data)
    except FramingError as error:
        assert str(error)
    else:
        assert len(leases) == len(results)


@pytest.mark.parametrize("make", [Lines, Json, Frames])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=20),
    first=st.integers(0, 10),
    read=st.integers(0, 2000),
    wanted=st.integers(1, 19),
)
def test_what_was_not_read_is_forgotten_and_the_rest_goes_on(
    make: Any, sizes: list[tuple[int, bool]], first: int, read: int, wanted: int
) -> None:
    """A process gets, in the end, what it would have got if what was taken back had never been written."""
    params: list[dict[str, Any]] = [{"n": 1}, {"n": 2}]
    batch = [Waiting(100 + k, 7, k, b"z" * size, params[other]) for k, (size, other) in enumerate(sizes)]
    framing, plain = make(None), make(None)
    parts = [part for part in (batch[:first], batch[first:]) if part]
    written = b"".join(framing.encode(part) for part in parts)
    unread = written[min(read, len(written)) :]
    count, size = framing.forget(batch, unread, min(wanted, len(batch) - 1))
    kept, gone = batch[: len(batch) - count], batch[len(batch) - count :]
    more = Waiting(999, 7, 999, b"more", params[0])
    expected = b"".join(plain.encode(part) for part in (kept, [more]))
    assert written[: len(written) - size] + framing.encode([more]) == expected
    assert not gone or len(unread) >= size > 0
    if make is Lines:
        assert framing.receive(b"answer\n" * (len(kept) + 1))[0] == [one.lease for one in (*kept, more)]
        with pytest.raises(FramingError):
            framing.receive(b"one too many\n")


def test_all_that_lies_in_the_pipe_whole_is_taken() -> None:
    framing = Lines(None)
    batch = waiting(5, b"four")
    unread = framing.encode(batch)[7:]
    assert framing.forget(batch, unread, 4) == (3, 15)
