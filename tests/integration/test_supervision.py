"""What daemons tell systemd, over a real notification socket; and that a log knows the journal's stream."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from districomp import systemd
from tests.patience import PATIENCE_S

TELL = """
from districomp import systemd
systemd.ready("page\\nhere")
systemd.watchdog()
systemd.status("")
systemd.stopping()
"""


def test_systemd_hears_ready_alive_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        subprocess.run([sys.executable, "-c", TELL], env=environment, check=True, timeout=PATIENCE_S)
        heard = [listener.recv(1000).decode() for _ in range(3)]
    assert heard == ["READY=1\nSTATUS=page here", "WATCHDOG=1", "STOPPING=1"]


def test_without_systemd_nothing_happens() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", TELL], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("variables", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_looks(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], interval_s: float | None
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval_s() == interval_s


def test_the_journals_form_is_for_the_journals_stream_only(tmp_path: Path) -> None:
    """The variable is inherited by children whose standard error goes elsewhere: they write for people."""
    code = "from districomp import log; import logging; log.setup('dcoord'); logging.info('ready')"
    path = tmp_path / "stderr"

    def run(stream: str) -> str:
        with path.open("w") as file:
            environment = {**os.environ, "JOURNAL_STREAM": stream}
            subprocess.run([sys.executable, "-c", code], env=environment, stderr=file, check=True, timeout=PATIENCE_S)
        return path.read_text()

    path.touch()
    status = path.stat()
    assert run(f"{status.st_dev}:{status.st_ino}") == "<6>ready\n"
    assert run(f"{status.st_dev}:{status.st_ino + 1}").endswith(" dcoord: ready\n")
    assert run("nonsense").endswith(" dcoord: ready\n")
