"""A private cluster on this machine: `dcoord`, its children and any number of `dworker`s, as real processes.

Used by the demonstration, the benchmarks and the tests. Everything lies below one folder, every port is
chosen by the system, and all traffic, mDNS too, stays on the loopback interface.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

READY_S: Final = 60.0
END_S: Final = 60.0

COORDINATOR_YAML: Final = """\
name: {name}
listen: {{address: 127.0.0.1, port: 0}}
web: {{port: 0}}
data: {{port: 0}}
discovery: {{interfaces: [lo]}}
lease: {lease}
"""
WORKER_YAML: Final = """\
cluster: {cluster}
name: {name}
slots: {slots}
discovery: {{interfaces: [lo]}}
"""


class ClusterError(Exception):
    """A process of the cluster did not do what it should; the message has the end of its log."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = READY_S) -> Any:
    """Ask until `condition` gives something true, and return that. ClusterError names `what` never came."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(0.01)


class Process:
    """A daemon of the cluster, its log in a file."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                argv, env=dict(environment), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._popen.poll()

    def log_text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the daemon alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self._popen.kill()
        self._popen.wait()

    def stop(self, timeout_s: float = END_S) -> int:
        """SIGTERM, and how it ended. ClusterError if it does not."""
        if self._popen.poll() is None:
            self._popen.terminate()
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ClusterError(f"{self.name} did not end within {timeout_s:g} s\n{self.log_text()[-2000:]}") from None


class Cluster:
    """A coordinator and its workers below one folder; a context manager that ends them all."""

    def __init__(
        self, folder: Path, *, name: str = "", lease: str = "15s", yaml: str = "", insecure: bool = False
    ) -> None:
        """`yaml` is added to the coordinator's configuration; `insecure`: plain TCP, nobody proves who he is."""
        self.folder = folder
        self._insecure = "insecure: true\n" if insecure else ""
        # Two clusters of one name on one loopback interface would find each other's workers.
        self.name = name or f"demo-{uuid.uuid4().hex[:8]}"
        self.workers: dict[str, Process] = {}
        self.coordinator: Process | None = None
        self._yaml = COORDINATOR_YAML.format(name=self.name, lease=lease) + self._insecure + yaml
        self.environment = self._environment("coordinator")
        self.config = folder / "coordinator" / "config"
        (self.config / "tasks.d").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ---- the coordinator ----

    def start_coordinator(self) -> Process:
        """Start `dcoord` and wait until it is ready."""
        file = self.config / "dcoord.yaml"
        file.write_text(self._yaml, encoding="utf-8")
        log = self.folder / "dcoord.log"
        process = Process("dcoord", [script("dcoord"), "--config", str(file)], self.environment, log, self.folder)
        self.coordinator = process
        wait_until(lambda: self._is_ready(process), "dcoord to be ready")
        return process

    def _is_ready(self, process: Process) -> bool:
        if process.returncode is not None:
            raise ClusterError(f"dcoord ended with {process.returncode}\n{process.log_text()[-2000:]}")
        return self.endpoint().get("pid") == process.pid

    def endpoint(self) -> dict[str, Any]:
        """`endpoint.json`; empty when there is none."""
        try:
            document: dict[str, Any] = json.loads((self.runtime / "endpoint.json").read_bytes())
        except FileNotFoundError:
            return {}
        return document

    @property
    def runtime(self) -> Path:
        """The coordinator's runtime folder."""
        return Path(self.environment["DISTRICOMP_RUNTIME_DIR"])

    # ---- workers ----

    def start_worker(self, name: str, slots: int = 1) -> Process:
        """Start a `dworker` with folders of its own and no address: mDNS finds the coordinator. Does not wait.

        It shares the coordinator's runtime folder, as on any machine: by the control socket there it is enrolled.
        """
        environment = self._environment(name) | {"DISTRICOMP_RUNTIME_DIR": str(self.runtime)}
        config = Path(environment["DISTRICOMP_CONFIG_DIR"])
        config.mkdir(parents=True, exist_ok=True)
        file = config / "dworker.yaml"
        text = WORKER_YAML.format(cluster=self.name, name=name, slots=slots) + self._insecure
        file.write_text(text, encoding="utf-8")
        log = self.folder / f"{name}.log"
        argv = [script("dworker"), "--config", str(file)]
        process = Process(name, argv, environment, log, config)
        self.workers[name] = process
        return process

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers are connected."""
        wait_until(lambda: self.dctl_json("status")["workers"] >= count, f"{count} workers to join")

    # ---- commands ----

    def dctl(
        self, *arguments: str, check: bool = True, input_: bytes | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run `dctl` to its end. ClusterError if it fails and `check` is set."""
        done = subprocess.run(
            [script("dctl"), *arguments], env=self.environment, input=input_, capture_output=True, check=False
        )
        if check and done.returncode != 0:
            raise ClusterError(f"dctl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.decode()}")
        return done

    def dctl_json(self, *arguments: str) -> Any:
        """What `dctl ... --json` prints."""
        return json.loads(self.dctl(*arguments, "--json").stdout)

    def stop(self) -> None:
        """End every process, the workers first; nothing is left behind."""
        processes = [*self.workers.values(), *([self.coordinator] if self.coordinator else [])]
        for process in processes:
            if process.returncode is None:
                process.signal(signal.SIGTERM)
        errors = []
        for process in processes:
            try:
                process.stop()
            except ClusterError as error:
                errors.append(str(error))
        if errors:
            raise ClusterError("\n".join(errors))

    def _environment(self, name: str) -> dict[str, str]:
        folder = self.folder / name
        own = {key: value for key, value in os.environ.items() if not key.startswith("DISTRICOMP_")}
        # A Unix socket's path has at most 107 bytes, so the runtime folder's name is short.
        folders = {"STATE": folder / "state", "CONFIG": folder / "config", "RUNTIME": folder / "run"}
        return own | {f"DISTRICOMP_{key}_DIR": str(path) for key, path in folders.items()}


def script(name: str) -> str:
    """The path of one of our commands, as installed beside this Python."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        path = Path(sys.executable).parent / name
    return str(path)
