"""A worker on other kinds of machines: as these are made to look by `other_machine.py`, joined to a real, trusted cluster."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from demo.cluster import Cluster, Process, wait_until
from districomp.taskdef import BundleFile
from dworker.cache import CacheError, read_manifest

CHILD: Final = Path(__file__).with_name("other_machine.py")
KINDS: Final = ("darwin", "android", "android-3.13", "windows")
HERE: Final = os.uname().machine
ARCHES: Final = {"darwin": "aarch64", "android": HERE, "android-3.13": HERE, "windows": "x86_64"}
DONE_S: Final = 100
DEFINITIONS: Final = {
    "upper": 'version: 1\ncommand: ["sh", "-c", "cat said/it; tr a-z A-Z"]\nbundle: text/\n',
    "large": 'version: 1\ncommand: ["sh", "-c", "cat"]\n',
    "lines": 'version: 1\nstream: ["sh", "-c", "while read -r line; do echo got $line; done"]\n',
    "halves": 'version: 1\npython: "halves:half"\nbundle: code/\n',
    "slow": 'version: 1\ncommand: ["sh", "-c", "trap : TERM; sleep {item}; sleep {item}"]\nretries: {max: 0}\n',
    "late": 'version: 1\ncommand: ["sleep", "600"]\nlimits: {time: 1s}\nretries: {max: 0}\n',
    "wrong": 'version: 1\ncommand: ["no-such-program"]\nretries: {max: 0}\n',
}
HALF: Final = "import sys\n\ndef half(data):\n    return data[: len(data) // 2] + sys.platform.encode()\n"
TASKKILL: Final = """\
#!/bin/sh
# As Windows' own: /T /F /PID N ends a process and its descendants.
[ "$1 $2 $3" = "/T /F /PID" ] || exit 1
end() { kill -STOP "$1"; for one in $(cat "/proc/$1/task/$1/children"); do end "$one"; done; kill -KILL "$1"; }
end "$4"
"""


class Machine:
    """One of these machines; its folder, its environment and its worker."""

    def __init__(self, cluster: Cluster, folder: Path, kind: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.kind = kind
        self.name = f"a-{kind}"
        address, port = cluster.endpoint()["control"]
        (folder / "tmp").mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DISTRICOMP_COORDINATOR": f"{address}:{port}",
            "DISTRICOMP_STATE_DIR": str(folder / "state"),
            "DISTRICOMP_RUNTIME_DIR": str(folder / "run"),
        }
        if kind == "windows":
            self._make_windows()
        self.config = folder / "dworker.yaml"
        self.config.write_text(f"name: {self.name}\nslots: 2\n")
        self._starts = 0

    def _make_windows(self) -> None:
        """Programs have suffixes there, and folders are where LOCALAPPDATA says."""
        programs, system = self.folder / "programs", self.folder / "windows" / "System32"
        programs.mkdir()
        system.mkdir(parents=True)
        for name in ("sh", "sleep"):
            (programs / f"{name}.exe").symlink_to(shutil.which(name) or "")
        (programs / "python.exe").symlink_to(Path(sys.executable).resolve())
        (system / "taskkill.exe").write_text(TASKKILL)
        (system / "taskkill.exe").chmod(0o755)
        profile = {name: value for name, value in self.environment.items() if not name.endswith("_DIR")}
        self.environment = profile | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "LOCALAPPDATA": str(self.folder / "local"),
            "SYSTEMROOT": str(self.folder / "windows"),
            "PROCESSOR_ARCHITECTURE": "AMD64",
        }

    @property
    def state(self) -> Path:
        return self.folder / ("local/districomp/state" if self.kind == "windows" else "state") / "dworker"

    def start(self, *arguments: str) -> Process:
        """Start `dworker`; what it says is in its log."""
        self._starts += 1
        log = self.folder / f"worker{self._starts}.log"
        command = [
            sys.executable,
            str(CHILD),
            self.kind,
            "--config",
            str(self.config),
        ]
        return Process(self.name, [*command, "-v", *arguments], self.environment, log, self.folder)

    def is_there(self, process: Process) -> bool:
        assert process.returncode is None, process.log_text()
        return self.shown()["state"] in ("idle", "busy")

    def shown(self) -> dict[str, Any]:
        """What the coordinator says of it."""
        found = [one for one in self.cluster.dctl_json("worker", "list") if one["name"] == self.name]
        return found[0] if found else {"state": "unknown"}


@contextlib.contextmanager
def joined(machine: Machine, *arguments: str) -> Iterator[Process]:
    process = machine.start(*arguments)
    try:
        wait_until(lambda: machine.is_there(process), f"the worker to join\n{process.log_text()}")
        yield process
    except BaseException:
        print(process.log_text())
        raise
    finally:
        if process.returncode is None:
            process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "site") as started:
        drop_ins = started.config / "tasks.d"
        for name, text in DEFINITIONS.items():
            (drop_ins / f"{name}.yaml").write_text(text)
        (drop_ins / "text" / "said").mkdir(parents=True)
        (drop_ins / "text" / "said" / "it").write_text("It said: ")
        (drop_ins / "code").mkdir()
        (drop_ins / "code" / "halves.py").write_text(HALF)
        started.start_coordinator()
        yield started


def test_no_kind_of_machine_is_left_out() -> None:
    assert set(ARCHES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_joins_by_a_token_and_runs_tasks_of_every_kind(kind: str, cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    machine = Machine(cluster, folder, kind)
    token = folder / "token"
    token.write_bytes(cluster.dctl("token", "create", "worker").stdout)
    with joined(machine, "--token-file", str(token)) as worker:
        assert machine.shown()["arch"] == ARCHES[kind]
        tasks_run(cluster, folder)
        stops_at_once(machine, worker)
    assert (machine.state / "identity" / "identity.json").is_file()
    # Its identity lasts, and is all that it needs.
    token.unlink()
    with joined(machine) as worker:
        assert results(cluster, "lines", lines=["again"]) == [b"got again"]
        worker.signal(signal.SIGUSR1 if kind == "windows" else signal.SIGINT)
        wait_until(lambda: worker.returncode is not None, "its end")
        assert worker.returncode == 0, worker.log_text()
        assert "Traceback" not in worker.log_text()


@pytest.mark.parametrize(
    "path", ["C:x", "a\\..\\..\\b", "a:stream", "..\\b", "nul", "a/COM1.txt", "a. /b", "a./b", "x?"]
)
def test_a_bundle_leads_nowhere_on_windows(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest is checked before anything of it is written; elsewhere these are names like others."""
    manifest = msgspec.msgpack.encode([BundleFile(path, 0o644, 1, "0" * 64)])
    assert read_manifest(manifest)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(CacheError, match="not allowed"):
        read_manifest(manifest)
    assert read_manifest(msgspec.msgpack.encode([BundleFile("common/null.txt", 0o644, 1, "0" * 64)]))


def tasks_run(cluster: Cluster, folder: Path) -> None:
    """Commands with a bundle, items and results too large for a message, a stream, a function; and what goes wrong."""
    assert results(cluster, "upper", lines=["abc", "def"]) == [b"It said: ABC", b"It said: DEF"]
    large = os.urandom(300_000)
    (folder / "large").write_bytes(large)
    assert results(cluster, "large", "--each-file", str(folder / "large")) == [large]
    lines = [str(number) for number in range(300)]
    assert results(cluster, "lines", lines=lines) == [f"got {line}".encode() for line in lines]
    assert results(cluster, "halves", lines=["abcdef", "12"]) == [
        b"abc" + sys.platform.encode(),
        b"1" + sys.platform.encode(),
    ]
    assert failure(cluster, "late")["reason"] == "timeout"
    attempt = failure(cluster, "wrong")
    assert attempt["reason"] == "not_started"
    assert "is not installed on this worker" in attempt["stderr_tail"]


def stops_at_once(machine: Machine, worker: Process) -> None:
    """Told twice to stop, it ends what does not heed Ctrl+Break or TERM, and what that has started."""
    mark = f"{1000 + KINDS.index(machine.kind)}{os.getpid()}"
    job = submit(machine.cluster, "slow", lines=[mark])
    running: Callable[[], bool] = lambda: any(mark in line for line in processes())  # noqa: E731
    wait_until(running, "the task to start")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "stopping: ending 1 tasks" in worker.log_text(), "it to be told")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: worker.returncode is not None, "its end")
    assert worker.returncode == 0, worker.log_text()
    wait_until(lambda: not running(), "the end of what its task had started")
    machine.cluster.dctl("cancel", job, "--yes")


def processes() -> list[str]:
    """The command lines of all that run, but for who submits."""
    lines = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.startswith("sleep ")]


def results(cluster: Cluster, *arguments: str, lines: Sequence[str] = ()) -> list[bytes]:
    """The results of a job, in the order of its tasks, without the end of their last line."""
    job = submit(cluster, *arguments, lines=lines)
    done = cluster.dctl("wait", job, "--timeout", str(DONE_S), check=False)
    assert done.returncode == 0, cluster.dctl("task", "show", f"{job}.0").stdout.decode()
    folder = cluster.folder / f"results-{job}"
    cluster.dctl("results", job, "--dir", str(folder))
    found = [path.read_bytes() for path in sorted(folder.iterdir(), key=lambda path: int(path.name))]
    return [one.removesuffix(b"\n") if len(one) < 1000 else one for one in found]


def submit(cluster: Cluster, *arguments: str, lines: Sequence[str] = ()) -> str:
    """A job with `lines` as its items, if there are any; its number."""
    each = ["--each-line", "-"] if lines else []
    return cluster.dctl("submit", *arguments, *each, input_="\n".join(lines).encode()).stdout.decode().strip()


def failure(cluster: Cluster, name: str) -> dict[str, Any]:
    """The only attempt of a task that fails."""
    job = submit(cluster, name, lines=["1"])
    assert cluster.dctl("wait", job, "--timeout", str(DONE_S), check=False).returncode == 1
    attempts = json.loads(cluster.dctl("task", "show", f"{job}.0", "--json").stdout)["attempts"]
    attempt: dict[str, Any] = attempts[-1]
    return attempt
