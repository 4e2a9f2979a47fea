"""A real coordinator and a real worker as processes, for what `dctl` and the client promise about them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from districomp.client import Client
from districomp.errors import DistricompError
from tests.integration.clientlab import DAEMONS
from tests.patience import PATIENCE_S

BOUND_S = PATIENCE_S

COORDINATOR_YAML = """\
name: client-tests
listen: {address: 127.0.0.1, port: 0}
web: {port: 0}
data: {port: 0}
advertise: false
"""
DEFINITIONS = {
    "copy": "command: [cat]",
    "upper": "command: [tr, a-z, A-Z]",
    "stubborn": "command: [sh, -c, 'echo to do; echo went wrong >&2; exit 7']\nretries: {max: 0}",
    "slow": "command: [sleep, '60']",
    "typed": (
        'command: [sh, -c, \'echo "$1 $2 $DISTRICOMP_INDEX"\', sh, "{count}", "{word}"]\n'
        "params: {count: {type: int, min: 1, max: 9}, word: {type: str, default: x}}"
    ),
    "small": "command: [cat]\nlimits: {data: 4B}",
    "lines": "stream: [sed, -u, s/a/b/]",
    "argument": 'command: [sh, -c, "printf %s \\"$1\\" | wc -c", sh, "{item}"]',
    "missing": "command: [no-such-program-anywhere]\nretries: {max: 0}",
    "needy": "command: [cat]\nrequires: {programs: [no-such-program-anywhere]}",
    # Fails until the file that its item names is there.
    "patient": 'command: [cat, "{item}"]\nretries: {max: 0}',
}


class Cluster:
    """`dcoord` and, once started, one `dworker` with two slots, all below one folder."""

    def __init__(self, folder: Path, settings: str = COORDINATOR_YAML) -> None:
        self.folder = folder
        self.environment = {
            "PYTHONPATH": str(DAEMONS),
            "DISTRICOMP_STATE_DIR": str(folder / "state"),
            "DISTRICOMP_CONFIG_DIR": str(folder / "config"),
            "DISTRICOMP_RUNTIME_DIR": str(folder / "run"),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "config/tasks.d", "run"):
            (folder / name).mkdir(parents=True)
        (folder / "config/dcoord.yaml").write_text(settings)
        for name, body in DEFINITIONS.items():
            (folder / f"config/tasks.d/{name}.yaml").write_text(f"version: 1\ndescription: {name}\n{body}\n")

    @property
    def socket(self) -> str:
        return str(self.folder / "run/control.sock")

    @property
    def endpoint(self) -> Path:
        return self.folder / "run/endpoint.json"

    def start_coordinator(self) -> None:
        """Start it and wait until it is ready, with its data port."""
        self.endpoint.unlink(missing_ok=True)
        self._start("dcoord")
        self.wait_for(
            lambda: self.endpoint.exists() and bool(json.loads(self.endpoint.read_text())["data"]), "endpoint"
        )

    def kill_coordinator(self) -> None:
        """As a power cut would."""
        os.kill(json.loads(self.endpoint.read_text())["pid"], signal.SIGKILL)
        self._processes.pop(0).wait(BOUND_S)

    def start_worker(self) -> None:
        """Start it and wait until it has joined."""
        address, port = json.loads(self.endpoint.read_text())["control"]
        self._start("dworker", "--slots", "2", "--coordinator", f"{address}:{port}")
        with Client(self.socket) as client:
            self.wait_for(lambda: client.status().workers == 1, "worker")

    def stop(self) -> None:
        """End everything, the worker first."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(BOUND_S)
            finally:
                process.kill()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something holds; what the daemons said is the answer if it never does."""
        deadline = time.monotonic() + BOUND_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what}: {self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def cancel_all(self) -> None:
        """Leave nothing of a test to the next one."""
        try:
            with Client(self.socket) as client:
                for job in client.jobs():
                    client.cancel(job.job)
        except DistricompError:
            return

    @property
    def address(self) -> str:
        """Of the control port."""
        host, port = json.loads(self.endpoint.read_text())["control"]
        return f"{host}:{port}"

    def start_elsewhere(self, program: str, elsewhere: "Elsewhere") -> subprocess.Popen[bytes]:
        """Start a daemon of another machine; its log is one of ours."""
        return self._start(program, environment=elsewhere.environment, log=f"{elsewhere.name}.log")

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End one that `start_elsewhere` started."""
        self._processes.remove(process)
        process.terminate()
        process.wait(BOUND_S)

    def _start(
        self, program: str, *arguments: str, environment: dict[str, str] | None = None, log: str = ""
    ) -> subprocess.Popen[bytes]:
        with (self.folder / (log or f"{program}.log")).open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | (environment or self.environment),
                cwd=self.folder,
            )
        if program == "dcoord":
            self._processes.insert(0, process)
        else:
            self._processes.append(process)
        return process


class Elsewhere:
    """Another machine, as far as folders make one: nothing of the coordinator's, mDNS on loopback."""

    def __init__(self, folder: Path, name: str, settings: str = "") -> None:
        self.name = name
        self.state = folder / name / "state"
        self.environment = {
            "PYTHONPATH": str(DAEMONS),
            "DISTRICOMP_STATE_DIR": str(self.state),
            "DISTRICOMP_CONFIG_DIR": str(folder / name / "config"),
            "DISTRICOMP_RUNTIME_DIR": str(folder / name / "run"),
        }
        for part in ("state", "config", "run"):
            (folder / name / part).mkdir(parents=True)
        text = f"name: {name}\nslots: 1\ndiscovery: {{interfaces: [lo]}}\n{settings}"
        (folder / name / "config/dworker.yaml").write_text(text)


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator and a worker for all tests of a module."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start_coordinator()
        cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(started_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The module's cluster as `dctl` finds it, in an empty folder; nothing of a test goes on after it."""
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", started_cluster.environment["DISTRICOMP_RUNTIME_DIR"])
    monkeypatch.chdir(tmp_path)
    yield started_cluster
    started_cluster.cancel_all()
