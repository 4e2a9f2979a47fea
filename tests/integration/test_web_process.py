"""dcoord-web as a process: its life, and what it does while the coordinator is away, silent or busy."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import districomp
from districomp.messages import Goodbye
from tests.integration.weblab import WAIT_S, Coordinator, Site, job_records, site, status, until
from tests.priority import timed


def run(it: Site, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dcoord.web", *arguments]
    return subprocess.run(command, env=it.environment, capture_output=True, text=True, timeout=WAIT_S, check=False)


def reachable(it: Site) -> bool:
    return bool(it.fetch("/stats.json").json()["coordinator"]["reachable"])


def test_the_coordinator_goes_and_comes_back(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        it.fill_journal(*job_records(1, [b"data", b"other"], [b"result"]))
        before = it.fetch("/stats.json").json()
        it.coordinator.stop()
        until(lambda: not reachable(it), "the page says that the coordinator is away")
        away = it.fetch("/stats.json").json()
        assert away["coordinator"]["since"] >= before["coordinator"]["since"]
        assert away["at"] is not None
        assert away["tasks"] == before["tasks"], "the last numbers stay"
        assert "coordinator not reachable since" in it.fetch("/").body.decode()
        health = it.fetch("/healthz")
        assert (health.status, health.json()) == (503, {"web": "ok", "coordinator": "unreachable"})
        refused = it.fetch("/api/v1/status", data=True)
        assert (refused.status, refused.json()["error"]) == (503, "unreachable")
        assert it.fetch("/tasks/1.1", data=True).body == b"other"
        assert it.fetch("/results/1.0", data=True).body == b"result"

        it.coordinator = Coordinator(it.coordinator.path)
        it.coordinator.answers["status"] = [status(epoch=4)]
        it.coordinator.start()
        until(lambda: it.fetch("/stats.json").json()["epoch"] == 4, "the page has the new numbers")
        assert it.coordinator.hellos[0].data_url.endswith(str(it.data_port))
        assert reachable(it)


def test_it_serves_before_there_is_any_coordinator(tmp_path: Path) -> None:
    with site(tmp_path, coordinator=False) as it:
        assert it.fetch("/stats.json").json()["at"] is None
        text = it.fetch("/").body.decode()
        assert "coordinator not reachable since" in text
        assert '<div class="hint" id="no-workers" hidden>' in text, "nobody knows yet whether there are workers"
        missing = it.fetch("/tasks/1.0", data=True)
        assert (missing.status, missing.json()["error"]) == (503, "journal")
        it.fill_journal(*job_records(1, [b"data", b""], [b"result"]))
        assert it.fetch("/tasks/1.0", data=True).body == b"data"
        it.coordinator.start()
        until(lambda: reachable(it), "the coordinator is found")


def test_many_views_are_few_questions(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        until(lambda: len(it.coordinator.asked) >= 4, "the first view asked")
        before = len(it.coordinator.asked)
        began = time.monotonic()
        threads = [threading.Thread(target=lambda: [it.fetch("/stats.json") for _ in range(25)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        took_s = time.monotonic() - began
        asked = len(it.coordinator.asked) - before
        assert asked <= 4 * (took_s / 0.25 + 1), f"{asked} questions for 200 views in {took_s:.2f} s"


def test_nobody_is_asked_while_nobody_looks(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        it.fetch("/")
        until(lambda: len(it.coordinator.asked) >= 4, "the view asked")
        before = len(it.coordinator.asked)
        time.sleep(1.5)
        assert len(it.coordinator.asked) == before


def test_a_silent_coordinator_does_not_hold_up_the_data(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        it.fill_journal(*job_records(1, [b"data", b""], [b"result"]))
        it.coordinator.silent = True
        time.sleep(0.3)
        threads = [threading.Thread(target=it.fetch, args=("/api/v1/jobs",), kwargs={"data": True}) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        with timed() as took:
            assert it.fetch("/tasks/1.0", data=True).body == b"data"
        assert took.alone_s < 2.0
        answer = it.fetch("/api/v1/workers", data=True)
        assert answer.status == 503
        assert "not answer" in answer.json()["message"]
        assert not reachable(it), "the page says so too"
        for thread in threads:
            thread.join(WAIT_S)


def test_it_asks_for_admission_again_when_refused(tmp_path: Path) -> None:
    with site(tmp_path, coordinator=False) as it:
        it.coordinator.refuses_with = Goodbye("version", "this coordinator speaks version 2")
        it.coordinator.start()
        until(lambda: len(it.coordinator.hellos) >= 3, "it tries again")
        assert "speaks version 2" in it.log.read_text()
        it.coordinator.refuses_with = None
        until(lambda: reachable(it), "it is let in")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_peers_connected(tmp_path: Path, number: signal.Signals) -> None:
    with site(tmp_path) as it, socket.create_connection(("127.0.0.1", it.web_port)), \
            socket.create_connection(("127.0.0.1", it.data_port)) as half:  # fmt: skip
        half.sendall(b"GET / HT")
        assert it.process is not None
        it.process.send_signal(number)
        assert it.process.wait(WAIT_S) == 0
        assert it.stop() == 0


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    it = Site(tmp_path)
    it.start("--parent-pipe")
    try:
        assert it.process is not None
        assert it.process.stdin is not None
        it.process.stdin.write(b"anything\n")
        it.process.stdin.flush()
        assert it.fetch("/healthz").status == 200
        it.process.stdin.close()
        assert it.process.wait(WAIT_S) == 0
    finally:
        assert it.stop() == 0
        it.coordinator.stop()


def test_a_port_in_use_is_said_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        it = Site(tmp_path, f"web: {{port: 0}}\ndata: {{port: {taken.getsockname()[1]}}}\n")
        it.configure()
        ended = run(it)
        assert ended.returncode == 1
        assert "data.port" in ended.stderr
        assert "in use" in ended.stderr
        assert "Traceback" not in ended.stderr
        it.coordinator.stop()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web: {port: 99999}\n", "port"),
        ("insecure: true\nweb: {address: 192.0.2.1}\n", "web.address"),
        ("web: {address: farm.example}\n", "web.address"),
        ("wbe: {}\n", "wbe"),
        (": :\n", "dcoord.yaml"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--check-config",)])
def test_a_wrong_configuration_ends_with_78(
    tmp_path: Path, text: str, expected: str, arguments: tuple[str, ...]
) -> None:
    it = Site(tmp_path)
    (tmp_path / "other.yaml").write_text(text)
    ended = run(it, "--config", str(tmp_path / "other.yaml"), *arguments)
    assert ended.returncode == 78, ended.stderr
    assert "other.yaml:" in ended.stderr
    it.coordinator.stop()


def test_its_memory_is_its_own(tmp_path: Path) -> None:
    """PR_GET_DUMPABLE (3) is 0 once its main function has begun: no other process of its user reads its keys there."""
    it = Site(tmp_path)
    code = (
        "import ctypes\n"
        "from dcoord.web.__main__ import main\n"
        "before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "main(['--check-config'])\n"
        "print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=it.environment, capture_output=True, timeout=WAIT_S, check=False
    )
    assert ended.stdout.split() == [b"1", b"0"], ended.stderr
    it.coordinator.stop()


def test_a_good_configuration_and_the_version_end_with_0(tmp_path: Path) -> None:
    it = Site(tmp_path)
    assert run(it, "--check-config").returncode == 0
    assert run(it, "--version").stdout == f"dcoord-web {districomp.__version__}\n"
    it.coordinator.stop()


def test_idle_it_is_small_and_asleep(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        it.fetch("/")
        assert it.process is not None
        pid = it.process.pid
        assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == "", "one process"
        rss = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        assert int(rss.split()[1]) < 48_000

        def asleep() -> bool:
            before = _cpu_ticks(pid)
            time.sleep(2.0)
            return _cpu_ticks(pid) - before <= 1

        until(asleep, "the end of its start and of the last connection's sweep")


def _cpu_ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
