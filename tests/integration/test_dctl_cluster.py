"""`dctl` and the client library with a real coordinator and a real worker, from the command to the result."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import districomp
from districomp.client import Client
from districomp.errors import RefusedError
from tests.integration.client_cluster import DEFINITIONS, Cluster, Elsewhere, cluster, started_cluster
from tests.integration.clientlab import dctl
from tests.patience import PATIENCE_S
from tests.priority import ahead_of_others, timed

__all__ = ["cluster", "started_cluster"]

LARGE = random.Random(3).randbytes(300_000)


def read_json(*arguments: str, code: int = 0) -> object:
    return json.loads(dctl(*arguments, "--json", code=code).stdout)


def test_run(cluster: Cluster) -> None:
    assert dctl("run", "echo", ":::", "a b", "c").stdout == b"a b\nc\n"
    assert dctl("run", "--range", "3..1", "--", "echo", "no.{}").stdout == b"no.3\nno.2\nno.1\n"
    assert (
        dctl("run", "--each-line", "-", "--", "sh", "-c", "cat; echo :$1", "sh", "{}", stdin=b"x\ny").stdout
        == b"x:x\ny:y\n"
    )
    assert dctl("run", "--", "awk", "BEGIN { print 6 * 7 }").stdout == b"42\n"
    assert dctl("run", "--sep", "", "--", "printf", "{}", ":::", "a", "b").stdout == b"ab"


def test_somebody_elsewhere_sends_and_fetches_by_the_data_port(cluster: Cluster, tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path, "elsewhere").environment | {"DISTRICOMP_COORDINATOR": cluster.address}
    dctl("join", "-", stdin=dctl("token", "create", "submit", "-q").stdout, environment=elsewhere)
    (tmp_path / "large").write_bytes(LARGE)
    dctl("submit", "copy", "--data-file", "large", "--wait", environment=elsewhere)
    assert dctl("results", "last", "--sep", "", environment=elsewhere).stdout == LARGE
    job = dctl("job", "show", "last", "-q", environment=elsewhere).stdout.decode().strip()
    other = Elsewhere(tmp_path, "other").environment | {"DISTRICOMP_COORDINATOR": cluster.address}
    dctl("join", "-", stdin=dctl("token", "create", "submit", "-q").stdout, environment=other)
    assert dctl("results", job, "--sep", "", code=4, environment=other).stdout == b""


def test_every_form_of_input_reaches_the_task(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"one\n\ntwo")
    (tmp_path / "large").write_bytes(LARGE)
    assert dctl("submit", "upper", "--data", "text", "--results").stdout == b"TEXT\n"
    assert dctl("submit", "upper", "--data-file", "small", "--results").stdout == b"ONE\n\nTWO\n"
    assert dctl("submit", "upper", "--each-line", "small", "--results").stdout == b"ONE\n\nTWO\n"
    assert dctl("submit", "upper", "--range", "1..3", "--results").stdout == b"1\n2\n3\n"
    assert dctl("submit", "copy", "--results").stdout == b"\n"
    dctl("submit", "copy", "--each-file", "small", "large", "--wait")
    dctl("results", "last", "--dir", "out")
    assert (tmp_path / "out/0").read_bytes() == b"one\n\ntwo"
    assert (tmp_path / "out/1").read_bytes() == LARGE
    shown = read_json("results", "last")
    assert isinstance(shown, list)
    assert (shown[1]["sha256"], shown[1]["bytes"]) == (hashlib.sha256(LARGE).hexdigest(), len(LARGE))
    assert dctl("submit", "copy", "--data-file", "-", "--results", stdin=LARGE + b"\n").stdout == LARGE + b"\n"


def test_a_failing_task_is_told(cluster: Cluster) -> None:
    ran = dctl("submit", "stubborn", "--range", "1..2", "--results", "--name", "bad", code=1)
    assert b"failed (exit 7): went wrong" in ran.stderr
    assert b"2 of 2 tasks have no result: 2 failed" in ran.stderr
    job = read_json("job", "show", "last")
    assert isinstance(job, dict)
    assert list(job) == [
        "job",
        "name",
        "definition",
        "state",
        "tasks",
        "counts",
        "submitted",
        "started",
        "ended",
        "eta_s",
    ]
    assert (job["name"], job["state"], job["counts"]["failed"]) == ("bad", "failed", 2)
    assert dctl("task", "list", "last", "--state", "failed", "-q").stdout.split() == [
        b"%d.%d" % (job["job"], i) for i in (0, 1)
    ]
    task = read_json("task", "show", "last.1")
    assert isinstance(task, dict)
    assert list(task) == ["task", "state", "attempts", "data_bytes", "result_bytes", "sha256"]
    (attempt,) = task["attempts"]
    assert (attempt["reason"], attempt["exit_code"], attempt["stderr_tail"]) == ("exit", 7, "went wrong\n")
    assert b"went wrong" in dctl("task", "show", "last.1").stdout
    assert dctl("wait", "last", code=1).stdout == b""


def test_what_there_is(cluster: Cluster) -> None:
    status = read_json("status")
    assert isinstance(status, dict)
    assert list(status) == [
        "cluster", "name", "version", "epoch", "uptime_s", "workers", "slots", "tasks", "tasks_per_s",
    ]  # fmt: skip
    assert (status["name"], status["workers"], status["slots"]) == ("client-tests", 1, 2)
    assert b"client-tests" in dctl("status").stdout
    workers = read_json("worker", "list")
    assert isinstance(workers, list)
    (worker,) = workers
    assert list(worker) == [
        "worker", "name", "state", "slots", "running", "arch", "memory_bytes", "address", "last_seen_s", "words",
    ]  # fmt: skip
    assert dctl("worker", "list", "-q").stdout.decode().strip() == worker["worker"]
    names = dctl("def", "list", "-q").stdout.decode().split()
    assert names == sorted([*DEFINITIONS, "callable", "shell"])
    assert b"did you mean 'copy'?" in dctl("def", "show", "cpy", code=2).stderr


def test_cancelling(cluster: Cluster) -> None:
    job = int(dctl("submit", "slow", "--range", "1..50").stdout)
    dctl("cancel", f"{job}.49", f"{job}.48", "--yes")
    assert dctl("task", "list", str(job), "--state", "cancelled", "-q").stdout.split() == [
        b"%d.%d" % (job, index) for index in (48, 49)
    ]
    assert b"48 tasks cancelled, now cancelled" in dctl("cancel", str(job), "--yes").stderr
    ran = dctl("results", str(job), code=1)
    assert b"50 of 50 tasks have no result: 50 cancelled" in ran.stderr
    shown = read_json("results", str(job), code=1)
    assert isinstance(shown, list)
    assert [entry["task"] for entry in shown] == [f"{job}.{index}" for index in range(50)]


def test_enough_failures_cancel_the_rest(cluster: Cluster) -> None:
    ran = dctl("submit", "stubborn", "--range", "1..200", "--max-fails", "3", "--results", "--json", code=1)
    states = [entry["state"] for entry in json.loads(ran.stdout)]
    assert len(states) == 200
    assert states.count("failed") >= 3
    assert states.count("cancelled") > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "cpy"], "no definition 'cpy'"),
        (["submit", "copy", "--param", "x=1"], "'x' is unknown"),
        (["job", "show", "99999"], "no job 99999"),
        (["task", "show", "99999.0"], "99999"),
        (["wait", "99999"], "99999"),
        (["results", "99999"], "99999"),
        (["cancel", "99999", "--yes"], "99999"),
    ],
)
def test_what_the_coordinator_refuses_is_a_sentence(cluster: Cluster, arguments: list[str], said: str) -> None:
    ran = dctl(*arguments, code=2)
    assert said in ran.stderr.decode()
    assert ran.stderr.count(b"\n") == 1


def test_the_library(cluster: Cluster) -> None:
    with districomp.Client() as client:
        job = client.submit("upper", items=["a", "b" * 70_000, b"c"], name="library")
        assert [result.read() for result in job.results(timeout=PATIENCE_S)] == [b"A", b"B" * 70_000, b"C"]
        assert sorted(result.index for result in job.as_completed()) == [0, 1, 2]
        document = job.wait(10)
        assert (document.state, document.name, document.tasks, job.tasks) == ("done", "library", 3, 3)
        again = client.submit("upper", data="x", request_id="22222222-2222-4222-8222-222222222222")
        assert (
            client.submit("upper", data="x", request_id="22222222-2222-4222-8222-222222222222").number == again.number
        )
        with pytest.raises(RefusedError) as caught:
            client.submit("none")
        assert caught.value.code == "unknown_definition"
        lines = [b"%d" % number for number in range(30_000)]
        many = client.submit("slow", items=lines)
        assert many.tasks == len(lines)
        assert many.cancel().counts.queued == 0


def test_a_killed_coordinator_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.start_coordinator()
        monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", cluster.environment["DISTRICOMP_RUNTIME_DIR"])
        command = [sys.executable, "-m", "dctl", "submit", "upper", "--range", "1..300", "--results"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            with Client(cluster.socket) as client:
                cluster.wait_for(lambda: bool(client.jobs()), "job")
            assert process.stderr is not None
            assert process.stderr.readline() == b"dctl: job 1: 300 tasks\n"
            cluster.kill_coordinator()
            assert b"coordinator away, waiting" in process.stderr.readline()
            cluster.start_coordinator()
            cluster.start_worker()
            out, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        assert out == b"".join(b"%d\n" % number for number in range(1, 301))
    finally:
        cluster.stop()


def test_status_is_fast(cluster: Cluster) -> None:
    """A promise with a wide margin here. The figure itself is measured in `bench/`."""
    times = []
    with ahead_of_others(json.loads(cluster.endpoint.read_text())["pid"]):
        for _ in range(5):
            with timed() as took:
                dctl("status")
            times.append(took.alone_s)
    assert min(times) < 0.6
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dctl.__main__ as m; m.run(['status']); print(*sys.modules)"],
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout.decode()
    heavy = {"asyncio", "rich", "yaml", "http.client", "ssl", "tempfile", "zeroconf", "dctl.submit"}
    assert not heavy & set(loaded.split())
