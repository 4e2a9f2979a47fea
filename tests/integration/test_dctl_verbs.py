"""What `dctl` does with a task's life, with a real coordinator and worker: matrices, rehearsals, retrying, explaining."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from districomp.client import Client
from tests.integration.client_cluster import Cluster, Elsewhere, cluster, started_cluster
from tests.integration.clientlab import dctl
from tests.patience import PATIENCE_S

__all__ = ["cluster", "started_cluster"]


def jobs(cluster: Cluster) -> int:
    with Client(cluster.socket) as client:
        return len(client.jobs())


# ---- matrices ----


def test_a_matrix_has_all_combinations_and_the_last_varies_fastest(cluster: Cluster) -> None:
    ran = dctl("submit", "typed", "--matrix", "count=1,2", "--matrix", "word=p,q r,", "--results")
    assert ran.stdout == b"1 p 0\n1 q r 1\n1  2\n2 p 3\n2 q r 4\n2  5\n"
    assert dctl("submit", "typed", "--matrix", "word=z", "--param", "count=7", "--results").stdout == b"7 z 0\n"
    with Client(cluster.socket) as client:
        job = client.submit("typed", matrix={"count": [3, 4]})
        assert [result.read() for result in job.results(timeout=PATIENCE_S)] == [b"3 x 0\n", b"4 x 1\n"]


@pytest.mark.parametrize("option", ["--wait", "--dry-run"])
def test_a_large_input_is_never_held_in_memory(cluster: Cluster, tmp_path: Path, option: str) -> None:
    """Nobody meets what `needy` requires, so that its tasks only wait until they are cancelled."""
    (tmp_path / "lines").write_text("".join(f"a line that is long enough, {number}\n" for number in range(1_000_000)))
    # Of the 33 MB no more than a part fits into what it may have beside itself.
    limited = ["sh", "-c", 'ulimit -d 24576; exec "$0" -m dctl "$@"', sys.executable]
    ran = subprocess.run(
        [*limited, "submit", "needy", "--each-line", "lines", option, "--timeout", "1ms"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == (124 if option == "--wait" else 0), ran.stderr


# ---- rehearsals ----


def test_a_rehearsal_shows_what_would_run_and_submits_nothing(cluster: Cluster, tmp_path: Path) -> None:
    before = jobs(cluster)
    (tmp_path / "lines").write_text("".join(f"line {number}\n" for number in range(10_000)))
    shown = json.loads(dctl("submit", "argument", "--each-line", "lines", "--dry-run", "--json").stdout)
    assert (shown["definition"], shown["runner"], shown["tasks"]) == ("argument", "command", 10_000)
    assert [task["index"] for task in shown["shown"]] == [0, 1, 9999]
    last = shown["shown"][-1]
    assert (last["argv"][-1], last["input_bytes"]) == ("line 9999", 9)
    assert last["environment"] == {
        "DISTRICOMP_TASK": "JOB.9999",
        "DISTRICOMP_JOB": "JOB",
        "DISTRICOMP_INDEX": "9999",
        "DISTRICOMP_ATTEMPT": "1",
        "DISTRICOMP_ITEM": "line 9999",
    }
    (tmp_path / "large").write_bytes(bytes(300_000))
    shown = json.loads(dctl("submit", "copy", "--each-file", "large", "lines", "--dry-run", "--json").stdout)
    assert [task["input_bytes"] for task in shown["shown"]] == [300_000, 98_890]
    ran = dctl("submit", "typed", "--matrix", "count=1,2", "--dry-run")
    assert b"sh 2 x\n" in ran.stdout
    assert b"all is well: 2 tasks of typed" in ran.stderr
    assert b"task 0  uname -a\n" in dctl("run", "--dry-run", "uname -a").stdout
    assert b"task 0  cat\n    input: 0 B\n" in dctl("submit", "copy", "--dry-run").stdout
    assert jobs(cluster) == before


def test_a_rehearsal_is_what_the_worker_then_does(cluster: Cluster) -> None:
    command = [
        "run",
        "--range",
        "8..10",
        "--",
        "sh",
        "-c",
        "echo $0 $DISTRICOMP_ITEM $DISTRICOMP_INDEX $DISTRICOMP_ATTEMPT",
        "{}",
    ]
    shown = json.loads(dctl(command[0], "--dry-run", "--json", *command[1:]).stdout)["shown"]
    said = [
        " ".join(
            [task["argv"][-1], *(task["environment"][f"DISTRICOMP_{name}"] for name in ("ITEM", "INDEX", "ATTEMPT"))]
        )
        for task in shown
    ]
    assert dctl(*command).stdout.decode().splitlines() == said


# ---- failures, and what a person does about them ----


def test_run_shows_what_commands_write_to_standard_error(cluster: Cluster) -> None:
    script = "echo out {}; echo err {} >&2; test {} != 2"
    ran = dctl("run", "--range", "1..3", "--", "sh", "-c", script, code=1)
    assert ran.stdout == b"out 1\nout 3\n"
    said = ran.stderr.decode().splitlines()
    assert [line for line in said if line.startswith("err")] == ["err 1", "err 2", "err 3"]
    assert said[-1] == "dctl: 1 of 3 tasks have no result: 1 failed"
    assert said[said.index("err 2") + 1].endswith(".1 failed (exit 1)")


def test_what_failed_is_retried_and_its_old_failures_are_gone(cluster: Cluster, tmp_path: Path) -> None:
    for name in "ac":
        (tmp_path / name).write_text(f"{name} is here\n")
    names = "".join(f"{tmp_path}/{name}\n" for name in "abc").encode()
    job = dctl("submit", "patient", "--each-line", "-", "--wait", stdin=names, code=1).stdout.decode().strip()
    assert b"nothing was queued again" not in dctl("job", "retry", job, "--failed").stderr
    assert dctl("results", job, "--follow", code=1).stdout == b"a is here\nc is here\n"
    (tmp_path / "b").write_text("b is here\n")
    ran = dctl("job", "retry", "last")
    assert f"job {job}: 1 task queued again" in ran.stderr.decode()
    dctl("wait", job)
    ran = dctl("results", job)
    assert (ran.stdout, ran.stderr) == (b"a is here\nb is here\nc is here\n", b"")
    assert [entry["state"] for entry in json.loads(dctl("results", job, "--json").stdout)] == ["done"] * 3
    task = json.loads(dctl("task", "show", f"{job}.1", "--json").stdout)
    assert [attempt["reason"] for attempt in task["attempts"]] == ["exit", "exit", "done"]
    assert b"nothing was queued again" in dctl("job", "retry", job).stderr
    document = json.loads(dctl("job", "retry", job, "--json").stdout)
    assert (document["job"], document["state"]) == (int(job), "done")


def test_a_cancelled_job_is_retried(cluster: Cluster) -> None:
    job = dctl("submit", "slow", "--range", "1..5").stdout.decode().strip()
    dctl("cancel", job, "--yes")
    assert b"has no failed task" in dctl("job", "retry", job, "--failed").stderr
    assert b"5 tasks queued again" in dctl("job", "retry", job).stderr
    assert json.loads(dctl("job", "show", job, "--json").stdout)["counts"]["cancelled"] == 0


@pytest.mark.parametrize(
    "script",
    ["printf 'no end of line' >&2", r"printf '\377\200 no text' >&2", "head -c 70000 /dev/zero >&2", ":"],
    ids=["plain", "not UTF-8", "long", "silent"],
)
def test_logs_are_exact(cluster: Cluster, script: str) -> None:
    dctl("submit", "shell", "--param", "argv=sh", "--param", "argv=-c", "--param", f"argv={script}", "--wait")
    ran = dctl("logs", "last.0")
    shown = json.loads(dctl("logs", "last.0", "--json").stdout)
    assert (shown["attempt"], shown["encoding"]) == (1, "base64" if "377" in script else "utf-8")
    if "zero" in script:
        assert ran.stdout == bytes(64 * 1024)
        assert b"the last 64 KiB" in ran.stderr
        assert shown["whole"] is False
    else:
        expected = {"p": b"no end of line", "r": b"\xff\x80 no text", ":": b""}
        assert ran.stdout == expected["r" if "377" in script else script[0]]
        assert ran.stderr == b""
        assert shown["whole"] is True


def test_logs_of_the_last_attempt_that_ended(cluster: Cluster) -> None:
    assert (
        b"no attempt of it has ended"
        in dctl("logs", f"{dctl('submit', 'slow').stdout.decode().strip()}.0", code=1).stderr
    )
    script = 'echo attempt $DISTRICOMP_ATTEMPT >&2; test "$DISTRICOMP_ATTEMPT" = 2'
    dctl("run", "--", "sh", "-c", script, code=1)
    assert dctl("logs", "last.0").stdout == b"attempt 1\n"


def explained(task: str) -> dict[str, str]:
    shown = json.loads(dctl("explain", task, "--json").stdout)
    assert list(shown) == ["task", "state", "cause", "text", "until"]
    assert shown["text"] in dctl("explain", task).stdout.decode()
    return {key: str(value) for key, value in shown.items()}


def test_a_task_is_explained(cluster: Cluster) -> None:
    dctl("submit", "needy")
    waiting = explained("last.0")
    assert (waiting["state"], waiting["cause"]) == ("queued", "requirement")
    assert "no-such-program-anywhere" in waiting["text"]
    dctl("submit", "slow", "--range", "1..9")
    cluster.wait_for(lambda: explained("last.0")["cause"] == "runs", "running task")
    assert explained("last.8")["cause"] in ("no_free_slot", "in_line")
    dctl("cancel", "last", "--yes")
    assert explained("last.0")["text"].endswith("it was cancelled while it ran")
    assert (explained("last.8")["cause"], explained("last.8")["text"]) in (
        ("cancelled", "no attempt was ever made"),
        ("cancelled", explained("last.8")["text"]),
    )


@pytest.mark.parametrize(
    ("submitted", "cause", "said"),
    [
        (["stubborn"], "exit", "ended with exit code 7. Its last words: 'went wrong'"),
        (["missing"], "not_started", "could not be started. The program 'no-such-program-anywhere' is not installed"),
        (
            ["shell", "--param", "argv=sh", "--param", "argv=-c", "--param", "argv=kill -9 $$"],
            "signal",
            "signal 9 (SIGKILL)",
        ),
        (["copy"], "done", "it succeeded"),
    ],
)
def test_a_task_that_has_ended_is_explained_by_its_last_attempt(
    cluster: Cluster, submitted: list[str], cause: str, said: str
) -> None:
    dctl("submit", *submitted, "--wait", code=0 if cause == "done" else 1)
    shown = explained("last.0")
    assert (shown["state"], shown["cause"]) == ("done" if cause == "done" else "failed", cause)
    assert said in shown["text"]


def test_last_is_this_users_newest_job(cluster: Cluster, tmp_path: Path) -> None:
    """Another user's job is newer."""
    own = dctl("submit", "copy", "--wait").stdout
    other = Elsewhere(tmp_path, "other").environment | {"DISTRICOMP_COORDINATOR": cluster.address}
    token = dctl("token", "create", "submit", "-q").stdout
    dctl("join", "-", stdin=token, environment=other)
    assert int(dctl("submit", "copy", "-q", environment=other).stdout) > int(own)
    assert dctl("job", "show", "last", "-q").stdout == own
