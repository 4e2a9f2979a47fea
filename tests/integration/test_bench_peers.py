"""`python -m bench peers` as a person runs it: it measures, it leaves nothing behind, also when it is interrupted.

No assertion on speed: a slow machine fails no test.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import wait_until
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where it puts what it makes: short, for the sockets in there."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def start(scratch: Path, *arguments: str) -> "subprocess.Popen[str]":
    # In a session of its own, as a terminal does it: a Ctrl-C of ours must not reach pytest.
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "peers", "--quick", "--folder", str(scratch / "peers"), *arguments],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(scratch)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def processes_of(scratch: Path) -> list[str]:
    """What was started with this folder in its environment and still runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(scratch).encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_it_measures_districomp_and_leaves_nothing(scratch: Path) -> None:
    process = start(scratch, "--only", "districomp,dask")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    assert "| **districomp 0." in out
    assert "yes, before it is acknowledged" in out
    assert "dask: not installed" in out
    assert "- dask.distributed: not measured: not installed." in out
    assert not processes_of(scratch)
    assert not list(scratch.iterdir())


def test_interrupted_it_ends_what_it_started(scratch: Path) -> None:
    process = start(scratch, "--only", "districomp")
    wait_until(lambda: list(scratch.glob("bench-*/w1.log")), "the second worker's start")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, out
    assert "everything that was started has been ended" in out
    assert not processes_of(scratch)
    assert not list(scratch.iterdir())


DETACHING = """
import subprocess
from bench.processes import all_ended
with all_ended():
    subprocess.run(["sh", "-c", "setsid sleep 50 >/dev/null 2>&1 & setsid setsid sleep 50 >/dev/null 2>&1 &"], check=True)
    raise KeyboardInterrupt
"""


def test_what_detached_itself_is_ended_too(scratch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DETACHING], cwd=ROOT, env=os.environ | {"TMPDIR": str(scratch)}, capture_output=True
    )
    assert b"KeyboardInterrupt" in done.stderr
    assert not processes_of(scratch)


def test_an_unknown_system_is_refused_with_those_there_are(scratch: Path) -> None:
    process = start(scratch, "--only", "slurm")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "there is no slurm; there are: districomp, " in out
