"""`dctl` as a process: exit codes, messages, terminals, and a coordinator that goes away; against the lab."""

import base64
import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from districomp.messages import Results, Submit, Watch
from districomp.model import DONE, FAILED, Blob, File
from tests.integration.clientlab import DataPort, Lab, Terminal, dctl, running
from tests.patience import PATIENCE_S


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "control.sock") as server:
        yield server


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `dctl` in the background; what a failed test has left is ended."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str) -> "subprocess.Popen[bytes]":
            pipe = subprocess.PIPE
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "dctl", *arguments], stdout=pipe, stderr=pipe)
            )
            stack.callback(process.kill)
            return process

        yield begin


# ---- nothing is a traceback ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit"], "DEF"),
        (["submit", "d", "--each-line", "nofile"], "nofile: no such file"),
        (["submit", "d", "--each-line", "."], ". is a folder"),
        (["submit", "d", "--each-line", "/dev/null"], "the input is empty"),
        (["submit", "d", "--each-line", "-"], "the input is empty"),
        (["submit", "d", "--data-file", "nofile"], "nofile: no such file"),
        (["submit", "d", "--each-file", "."], ". is a folder"),
        (["submit", "d", "--each-file", "nofile"], "nofile: no such file"),
        (["submit", "d", "--each-file"], "at least one path"),
        (["submit", "d", "--each-file", ""], "path is empty"),
        (["submit", "d", "--data", "a", "--range", "1..2"], "one form of input"),
        (["submit", "d", "--range", "1-2"], "1..100"),
        (["submit", "d", "--param", "x"], "K=V"),
        (["submit", "d", "--name", "\udcff"], "not Unicode"),
        (["submit", "d", "--timeout", "soon"], "soon"),
        (["run"], "no command"),
        (["run", "--each-line", "-", "echo", ":::", "a"], "one form of input"),
        (["job", "show", "77"], "no job 77"),
        (["wait", "first"], "not a job's number"),
        (["results", "last"], "no job here yet"),
        (["results", "1", "--dir", "/proc/none"], "--dir /proc/none"),
        (["results", "1", "--dir", "x", "--json"], "--dir"),
        (["task", "show", "7"], "not a task id"),
        (["cancel", "77", "--yes"], "no job 77"),
        (["stats"], "did you mean 'status'?"),
        (["status", "--json", "-q"], "exclude each other"),
    ],
)
def test_what_is_wrong_is_one_sentence(lab: Lab, arguments: list[str], said: str) -> None:
    ran = dctl(*arguments, code=2)
    assert said in ran.stderr.decode()
    assert ran.stderr.count(b"\n") == 1
    assert ran.stdout == b""
    assert not lab.jobs


def test_an_unreadable_file(lab: Lab, tmp_path: Path) -> None:
    # A directory entry that cannot be read by anybody, root included.
    (tmp_path / "loop").symlink_to("loop")
    for option in ("--each-line", "--data-file", "--each-file"):
        assert b"loop" in dctl("submit", "d", option, "loop", code=2).stderr


def test_no_coordinator(tmp_path: Path) -> None:
    said = dctl("status", code=3, DISTRICOMP_RUNTIME_DIR=str(tmp_path)).stderr.decode()
    assert f"there is no {tmp_path}/control.sock" in said
    assert "Start dcoord" in said


def test_refusals(lab: Lab) -> None:
    lab.refusal = ("unknown_definition", "there is no definition 'd'; live are: shell")
    assert b"live are: shell" in dctl("submit", "d", code=2).stderr
    lab.refusal = ("not_allowed", "only admins may")
    dctl("submit", "d", code=4)
    lab.refusal = ("degraded", "the disk is full")
    assert b"the disk is full" in dctl("submit", "d", code=1).stderr


def test_a_reader_that_goes_away(lab: Lab, start: Start) -> None:
    dctl("submit", "d", "--range", "1..10000")
    for first in range(0, 10_000, 1000):
        lab.end(1, list(range(first, first + 1000)), [b"x" * 100] * 1000)
    process = start("results", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"x" * 100 + b"\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 141


# ---- submitting ----


def test_each_form_of_input(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n\n\xff")
    forms: list[tuple[list[str], list[object]]] = [
        (["--data", "text"], [b"text"]),
        (["--data-file", "a"], [b"1\n\n\xff"]),
        (["--data-file", "-"], [b"standard\ninput"]),
        (["--each-line", "a"], [b"1", b"", b"\xff"]),
        (["--each-line", "-"], [b"standard", b"input"]),
        (["--each-file", "a", "./a", "--name", "n"], [File("a", b"1\n\n\xff"), File("./a", b"1\n\n\xff")]),
    ]
    for number, (options, items) in enumerate(forms, start=1):
        assert dctl("submit", "d", *options, stdin=b"standard\ninput").stdout == b"%d\n" % number
        assert lab.jobs[number].items == items
    printed = dctl(
        "submit", "d", "--range", "5..1:2", "--param", "a=1", "--param", "b=x", "--param", "b=y", "--json"
    ).stdout
    assert json.loads(printed) == {"job": 7, "tasks": 3}
    assert lab.jobs[7].submit.numbers == (5, -2)
    assert lab.jobs[7].submit.params == {"a": "1", "b": ["x", "y"]}


def test_a_request_id_repeated(lab: Lab) -> None:
    options = ("submit", "d", "--request-id", "11111111-1111-4111-8111-111111111111", "-q")
    assert dctl(*options).stdout == dctl(*options).stdout == b"1\n"
    assert len(lab.jobs) == 1


def test_run_prints_in_task_order(lab: Lab, start: Start) -> None:
    process = start("run", "echo", "{}", ":::", "a", "b", "c")
    lab.wait_for_message(Submit)
    lab.end(1, [2, 1], [b"c\n", b"b"])
    lab.end(1, [0], [b"a\n"])
    out, said = process.communicate(timeout=PATIENCE_S)
    assert (out, said, process.returncode) == (b"a\nb\nc\n", b"", 0)
    assert lab.jobs[1].submit.definition == "shell"
    assert lab.jobs[1].submit.params == {"argv": ["echo", "{item}"]}
    assert lab.jobs[1].items == [b"a", b"b", b"c"]


# ---- results ----


def job_of_five(lab: Lab) -> None:
    """Done: text, bytes, nothing, large; and one failed."""
    large = b"0123456789abcdef" * 5000
    digest = hashlib.sha256(large)
    port = DataPort()
    port.blobs["1.4"] = large
    lab.data_url = port.url
    dctl("submit", "d", "--range", "1..5")
    payloads = [b"text", b"\xff\n", None, None, Blob(digest.digest(), len(large))]
    reasons = ["done", "done", "done", "exit", "done"]
    states = [DONE, DONE, DONE, FAILED, DONE]
    stderr = [b"", b"", b"", b"first\nlast \x1b[31mline\n", b""]
    codes = [None, None, None, 7, None]
    lab.end(1, [0, 1, 2, 3, 4], payloads, states=states, reasons=reasons, exit_codes=codes, stderr=stderr)


LARGE = b"0123456789abcdef" * 5000


def test_results_as_text(lab: Lab) -> None:
    job_of_five(lab)
    ran = dctl("results", "1", code=1)
    assert ran.stdout == b"text\n\xff\n\n" + LARGE + b"\n"
    assert "task 1.3 failed (exit 7): last �[31mline" in ran.stderr.decode()
    assert b"1 of 5 tasks have no result: 1 failed" in ran.stderr
    assert dctl("results", "last", "--sep", "", code=1).stdout == b"text\xff\n" + LARGE
    assert dctl("results", "1", "--sep", "--", code=1).stdout == b"text--\xff\n----" + LARGE + b"--"
    assert dctl("results", "1", "-q", code=1).stdout == b"1.0\n1.1\n1.2\n1.4\n"


def test_results_as_json(lab: Lab) -> None:
    job_of_five(lab)
    wanted = [
        {"task": "1.0", "state": "done", "result": "text", "encoding": "utf-8"},
        {"task": "1.1", "state": "done", "result": base64.b64encode(b"\xff\n").decode(), "encoding": "base64"},
        {"task": "1.2", "state": "done", "result": "", "encoding": "utf-8"},
        {"task": "1.3", "state": "failed", "result": None},
        {"task": "1.4", "state": "done", "sha256": hashlib.sha256(LARGE).hexdigest(), "bytes": len(LARGE)},
    ]
    assert json.loads(dctl("results", "1", "--json", code=1).stdout) == wanted
    lines = dctl("results", "1", "--json", "--follow", code=1).stdout.splitlines()
    assert [json.loads(line) for line in lines] == wanted


def test_results_as_files(lab: Lab, tmp_path: Path) -> None:
    job_of_five(lab)
    assert dctl("results", "1", "--dir", "out/deep", code=1).stdout == b""
    written = {path.name: path.read_bytes() for path in (tmp_path / "out/deep").iterdir()}
    assert written == {"0": b"text", "1": b"\xff\n", "2": b"", "4": LARGE}


def test_results_of_a_job_that_runs(lab: Lab) -> None:
    dctl("submit", "d", "--range", "1..3")
    lab.end(1, [1], [b"b"])
    ran = dctl("results", "1", code=1)
    assert ran.stdout == b"b\n"
    assert b"2 of 3 tasks had not ended" in ran.stderr


# ---- waiting ----


def test_wait(lab: Lab) -> None:
    dctl("submit", "d")
    dctl("submit", "d")
    lab.end(1, [0])
    assert dctl("wait", "1").stdout == b""
    lab.end(2, [0], states=[FAILED])
    ran = dctl("wait", "1", "2", "--json", code=1)
    assert [document["state"] for document in json.loads(ran.stdout)] == ["done", "failed"]
    assert b"job 2 failed: of 1 tasks 1 failed; see: dctl task list 2 --state failed" in ran.stderr
    assert dctl("wait", "1", "-q").stdout == b"1\n"


@pytest.mark.parametrize("command", [["wait", "1"], ["results", "1", "--follow"], ["wait", "1", "--progress"]])
def test_interrupted_the_job_goes_on(lab: Lab, start: Start, command: list[str]) -> None:
    dctl("submit", "d")
    process = start(*command)
    lab.wait_for(lambda: any(isinstance(message, Watch | Results) for message in lab.received))
    process.send_signal(signal.SIGINT)
    _out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert b"job 1 goes on; watch: dctl wait 1 --progress; cancel: dctl cancel 1" in said
    assert b"Traceback" not in said


def test_interrupted_before_the_answer(lab: Lab, start: Start) -> None:
    lab.cut_before = lambda message: isinstance(message, Submit)
    process = start("submit", "d")
    lab.wait_for_message(Submit)
    lab.stop()
    try:
        process.send_signal(signal.SIGINT)
        _out, said = process.communicate(timeout=PATIENCE_S)
    finally:
        lab.start()
    assert process.returncode == 130
    assert re.search(rb"repeat the command with --request-id [0-9a-f-]{36}", said)


@pytest.mark.parametrize("command", [["wait", "1"], ["submit", "d", "--wait"], ["run", "true"]])
def test_the_time_is_up(lab: Lab, command: list[str]) -> None:
    dctl("submit", "d")
    lab.jobs.clear() if command[0] != "wait" else None
    ran = dctl(command[0], "--timeout", "200ms", *command[1:], code=124)
    assert b"job 1 goes on" in ran.stderr


def test_a_coordinator_that_is_restart(lab: Lab, start: Start) -> None:
    process = start("submit", "d", "--range", "1..2", "--results")
    lab.wait_for_message(Results)
    lab.stop()
    assert process.stderr is not None
    assert process.stderr.readline() == b"dctl: job 1: 2 tasks\n"
    assert b"coordinator away, waiting" in process.stderr.readline()
    lab.start()
    lab.end(1, [1, 0], [b"2", b"1"])
    out, said = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == (b"1\n2\n", 0)
    assert said == b"dctl: coordinator is back\n"


# ---- on a terminal ----


def test_progress_without_a_terminal_is_lines(lab: Lab, start: Start) -> None:
    process = start("submit", "d", "--range", "1..3", "--progress")
    lab.wait_for_message(Watch)
    lab.end(1, [0, 1, 2], states=[DONE, DONE, FAILED])
    _out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    lines = said.decode().splitlines()
    assert lines[-2].startswith("dctl: job 1 d  2/3  1 failed  failed")
    assert b"\x1b" not in said


@pytest.mark.parametrize("columns", [60, 100])
def test_a_progress_bar(lab: Lab, columns: int) -> None:
    terminal = Terminal("submit", "d", "--range", "1..10", "--progress", columns=columns, NO_COLOR="1")
    terminal.wait_for("0/10")
    lab.end(1, [0, 1, 2], states=[DONE, DONE, FAILED])
    terminal.wait_for("2/10  1 failed")
    lab.end(1, list(range(3, 10)))
    terminal.wait_for("9/10  1 failed  failed")
    assert terminal.end() == 1
    assert ("━" in terminal.text) == (columns == 100)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
    assert max(len(line) for line in re.split(r"[\r\n]+", shown) if not line.startswith("dctl:")) <= columns
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.text), "NO_COLOR was set"


def test_ctrl_c_on_a_terminal(lab: Lab) -> None:
    terminal = Terminal("submit", "d", "--progress", "--results")
    terminal.wait_for("0/1")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "job 1 goes on" in terminal.text


@pytest.mark.parametrize(("answer", "code", "state"), [("y", 0, "cancelled"), ("n", 1, "running")])
def test_cancelling_asks_on_a_terminal(lab: Lab, answer: str, code: int, state: str) -> None:
    dctl("submit", "d", "--range", "1..9")
    terminal = Terminal("cancel", "last")
    terminal.wait_for("Cancel job 1 (9 of 9 tasks not ended)? [y/N]")
    terminal.type(f"{answer}\n")
    assert terminal.end() == code
    assert lab.jobs[1].document().state == state


def test_cancelling_elsewhere_needs_yes(lab: Lab) -> None:
    dctl("submit", "d", "--range", "1..9")
    assert b"needs --yes" in dctl("cancel", "1", code=2).stderr
    assert lab.jobs[1].document().state == "running"
    assert json.loads(dctl("job", "cancel", "1", "--yes", "--json").stdout)[0]["state"] == "cancelled"
    assert b"had ended before" in dctl("cancel", "1", "--yes").stderr


def test_colours_on_a_terminal_only(lab: Lab) -> None:
    dctl("submit", "d", "--name", "evil \x1b[31m name")
    terminal = Terminal("job", "list")
    assert terminal.end() == 0
    assert "\x1b[36mrunning" in terminal.text
    assert "evil �[31m" in terminal.text
    assert b"\x1b" not in dctl("job", "list").stdout
    plain = Terminal("job", "list", NO_COLOR="1")
    assert plain.end() == 0
    assert "\x1b" not in plain.text
