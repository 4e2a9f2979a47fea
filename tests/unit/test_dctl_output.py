"""What people read: tables, cards, times, sizes; and nothing that plays with their terminal."""

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctl import output
from dctl.output import Column
from dctl.progress import summary
from dctl.results import document
from districomp.client_results import TaskRecord, TaskResult, ended_tasks
from districomp.client_shelf import in_task_order
from districomp.documents import Counts, JobDocument
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, Blob
from districomp.outcome import Outcome


class Terminal(io.StringIO):
    """Standard output as a terminal."""

    def isatty(self) -> bool:
        return True


ROWS = [("1", "a name that is much longer than it need be", "done"), ("22", "b", "failed")]
COLUMNS = (
    Column("ID", lambda row: row[0], right=True),
    Column("NAME", lambda row: row[1], shrinks=True),
    Column("STATE", lambda row: row[2]),
)


@pytest.mark.parametrize("count", [0, 1, output.BLOCK_ROWS, output.BLOCK_ROWS + 1])
def test_a_long_list_is_printed_as_it_comes(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(mode: output.Mode) -> str:
        pieces: list[str] = []

        def watched() -> Iterator[tuple[str, str, str]]:
            for number, row in enumerate(rows_of_count()):
                if number == output.BLOCK_ROWS:
                    pieces.append(capsys.readouterr().out)
                    assert pieces[0], "nothing is printed before all has come"
                yield row

        output.print_stream(mode, watched(), lambda row: row[0], COLUMNS)
        return "".join([*pieces, capsys.readouterr().out])

    def rows_of_count() -> Iterator[tuple[str, str, str]]:
        return ((str(number), "", "done") for number in range(count))

    assert json.loads(printed("json")) == [list(row) for row in rows_of_count()]
    assert printed("quiet").split() == [row[0] for row in rows_of_count()]
    lines = printed("text").splitlines()
    assert len(lines) == count + -(-count // output.BLOCK_ROWS)
    assert sum("STATE" in line for line in lines) == -(-count // output.BLOCK_ROWS)


def test_a_table_in_a_pipe_is_plain_and_whole() -> None:
    assert output.table(ROWS, COLUMNS).splitlines() == [
        "ID  NAME                                        STATE",
        " 1  a name that is much longer than it need be  done",
        "22  b                                           failed",
    ]


@pytest.mark.parametrize("columns", [30, 40, 80])
def test_a_table_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    lines = output.table(ROWS, COLUMNS).splitlines()
    assert max(len(line) for line in lines) <= columns
    assert all(line.endswith(("STATE", "done", "failed")) for line in lines)


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31mfailed" in output.table(ROWS, COLUMNS)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in output.table(ROWS, COLUMNS)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in output.table(ROWS, COLUMNS)


@given(st.text(max_size=40))
def test_no_control_character_reaches_the_terminal(text: str) -> None:
    shown = output.clean(text)
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert output.table([(text, text, text)], COLUMNS).count("\n") == 2


def test_a_narrow_table_leaves_out_what_matters_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    columns = [
        Column("NAME", lambda row: row, shrinks=True),
        Column("MINOR", lambda row: row, shrinks=True, spare=1),
        Column("LEAST", lambda row: row, spare=2),
    ]
    for room, titles in ((70, "NAME MINOR LEAST"), (40, "NAME MINOR"), (30, "NAME"), (10, "NAME")):
        monkeypatch.setenv("COLUMNS", str(room))
        monkeypatch.setenv("NO_COLOR", "1")
        shown = output.table(["twenty-two-characters!"], columns).splitlines()
        assert shown[0].split() == titles.split()
        assert max(len(line) for line in shown) <= room


def test_wide_characters_take_two_columns() -> None:
    lines = output.table([("1", "漢字", "x"), ("2", "ab", "y")], COLUMNS).splitlines()
    assert lines[1].index("x") + 2 == lines[2].index("y")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (86400, "1 d"),
        (3723, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert output.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert output.size(count) == text


def job(state: str, counts: Counts, eta_s: float | None = None) -> JobDocument:
    return JobDocument(1, "", "d", state, 100, counts, "", None, None, eta_s)


def test_a_jobs_summary() -> None:
    assert summary(job("running", Counts(queued=50, running=8, done=40, failed=2)), 20.0) == (
        "40/100  2 failed  8 running  20.0/s  ETA 2.9 s"
    )
    assert summary(job("running", Counts(queued=100), eta_s=90.0), None) == "0/100  0 running  ETA 1 min 30 s"
    assert summary(job("failed", Counts(done=99, failed=1)), 5.0) == "99/100  1 failed  failed"


# ---- results ----


def record(index: int, **fields: Any) -> TaskRecord:
    return TaskRecord(1, index, DONE, **fields)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_task_order(order: list[int], missing: set[int]) -> None:
    given_ones = [record(index) for index in order if index not in missing]
    ordered = [entry.index for entry in in_task_order(given_ones)]
    assert ordered == [index for index in range(12) if index not in missing]


def test_an_outcome_unpacked() -> None:
    plain = list(ended_tasks(Outcome(7, 1, "w", [3, 4], results=[b"x", None])))
    assert [(entry.job, entry.index, entry.state, entry.reason, entry.payload) for entry in plain] == [
        (7, 3, DONE, "done", b"x"),
        (7, 4, DONE, "done", None),
    ]
    mixed = Outcome(
        7,
        2,
        "w",
        [0, 1, 2],
        [QUEUED, FAILED, CANCELLED],
        [1, 2, 1],
        ["exit", "signal", "cancelled"],
        signals=[None, 9, None],
    )
    assert [(entry.index, entry.attempt, entry.signal) for entry in ended_tasks(mixed)] == [(1, 2, 9), (2, 1, None)]


def no_download(*_arguments: object) -> None:
    raise AssertionError("nothing is to be fetched")


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        (record(0, payload=b"caf\xc3\xa9\n"), '{"task":"1.0","state":"done","result":"café\\n","encoding":"utf-8"}'),
        (record(0), '{"task":"1.0","state":"done","result":"","encoding":"utf-8"}'),
        (record(0, payload=b"\xff\x00"), '{"task":"1.0","state":"done","result":"/wA=","encoding":"base64"}'),
        (
            record(0, payload=Blob(b"\xab" * 32, 70_000)),
            f'{{"task":"1.0","state":"done","sha256":"{"ab" * 32}","bytes":70000}}',
        ),
        (TaskRecord(1, 0, FAILED), '{"task":"1.0","state":"failed","result":null}'),
    ],
)
def test_a_result_in_json(entry: TaskRecord, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json(document(TaskResult(entry, no_download)))
    assert capsys.readouterr().out == f"{shown}\n"
