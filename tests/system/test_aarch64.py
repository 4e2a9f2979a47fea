"""A worker with another processor, emulated, in one cluster with a worker of this machine's own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from demo.cluster import Cluster, Process, wait_until

from .foreignlab import foreign_command, foreign_packages, foreign_root

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

JOIN_S: Final = 120.0
"""Emulated, a Python that imports all that a worker needs takes up to a quarter of a minute on a busy machine."""
DONE_S: Final = "120"
FOREIGN: Final = "aarch64"
HERE: Final = os.uname().machine
DEFINITIONS: Final = {
    "here": f"version: 1\ncommand: [uname, -m]\nrequires: {{arch: [{HERE}]}}\n",
    "there": f"version: 1\ncommand: [uname, -m]\nrequires: {{arch: [{FOREIGN}]}}\n",
    "there_python": f'version: 1\npython: "machine:name"\nbundle: code/\nrequires: {{arch: [{FOREIGN}]}}\n',
    "there_stream": f'version: 1\nstream: [sh, -c, "while read -r item; do echo $item $(uname -m); done"]\nrequires: {{arch: [{FOREIGN}]}}\n',
    "either": f'version: 1\ncommand: [sh, -c, "sleep 0.2; uname -m"]\nrequires: {{arch: [{HERE}, {FOREIGN}]}}\n',
    "any": 'version: 1\ncommand: [sh, -c, "sleep 0.2; uname -m"]\n',
}
MODULE: Final = "import platform\n\n\ndef name(data):\n    return data + b' ' + platform.machine().encode()\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator, a worker `own` of this machine, and a worker `foreign`, which has joined by a token over TLS."""
    folder = tmp_path_factory.mktemp("a")
    root = foreign_root()
    libraries = folder / "libraries"
    foreign_packages(libraries)
    with Cluster(folder) as started:
        drop_ins = started.config / "tasks.d"
        for name, text in DEFINITIONS.items():
            (drop_ins / f"{name}.yaml").write_text(text)
        (drop_ins / "code").mkdir()
        (drop_ins / "code" / "machine.py").write_text(MODULE)
        started.start_coordinator()
        started.start_worker("own", slots=2)
        foreign = start_foreign(started, root, libraries)
        wait_until(lambda: foreign.returncode is not None or len(workers(started)) == 2, "both workers", JOIN_S)
        assert foreign.returncode is None, foreign.log_text()
        yield started
        # By itself: a second signal, while it ends slowly, would not be heeded any more.
        assert foreign.stop(JOIN_S) == 0, foreign.log_text()


def start_foreign(cluster: Cluster, root: Path, libraries: Path) -> Process:
    """The emulated worker; ended with the cluster."""
    folder = cluster.folder / "foreign"
    folder.mkdir()
    (folder / "token").write_bytes(cluster.dctl("token", "create", "worker").stdout)
    address, port = cluster.endpoint()["control"]
    (folder / "dworker.yaml").write_text(f"name: foreign\nslots: 2\ncoordinator: {address}:{port}\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/worker",
        "PYTHONPATH": "/code:/packages",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DISTRICOMP_STATE_DIR": "/worker/state",
        "DISTRICOMP_RUNTIME_DIR": "/worker/run",
    }
    arguments = ["--config", "/worker/dworker.yaml", "--token-file", "/worker/token"]
    command = foreign_command(root, libraries, folder, environment, ["/usr/bin/python3", "-m", "dworker", *arguments])
    process = Process("foreign", command, os.environ, cluster.folder / "foreign.log", folder)
    cluster.workers["foreign"] = process
    return process


def workers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Those that are here, by name."""
    return {one["name"]: one for one in cluster.dctl_json("worker", "list") if one["state"] in ("idle", "busy")}


def run(cluster: Cluster, *arguments: str, count: int = 6) -> list[tuple[str, str]]:
    """Worker and result of each task of a job of so many tasks."""
    job = cluster.dctl("submit", *arguments, "--range", f"0..{count - 1}").stdout.decode().strip()
    done = cluster.dctl("wait", job, "--timeout", DONE_S, check=False)
    assert done.returncode == 0, cluster.dctl("task", "show", f"{job}.0").stdout.decode()
    names = {one["worker"]: name for name, one in workers(cluster).items()}
    shown = [cluster.dctl_json("task", "show", f"{job}.{index}")["attempts"] for index in range(count)]
    results = cluster.dctl("results", job).stdout.decode().splitlines()
    return [(names[attempt["worker"]], result) for (attempt,), result in zip(shown, results, strict=True)]


def test_each_says_what_it_is(cluster: Cluster) -> None:
    assert {name: one["arch"] for name, one in workers(cluster).items()} == {"own": HERE, "foreign": FOREIGN}


def test_tasks_go_where_their_processor_is_and_nowhere_else(cluster: Cluster) -> None:
    assert run(cluster, "there") == [("foreign", FOREIGN)] * 6
    assert run(cluster, "here") == [("own", HERE)] * 6


def test_long_lived_programs_and_functions_run_there_too(cluster: Cluster) -> None:
    assert run(cluster, "there_python") == [("foreign", f"{index} {FOREIGN}") for index in range(6)]
    assert run(cluster, "there_stream") == [("foreign", f"{index} {FOREIGN}") for index in range(6)]


@pytest.mark.parametrize("name", ["either", "any"])
def test_tasks_that_may_run_anywhere_are_shared(name: str, cluster: Cluster) -> None:
    assert set(run(cluster, name, count=24)) == {("own", HERE), ("foreign", FOREIGN)}


def test_tasks_wait_for_their_processor(cluster: Cluster) -> None:
    """With its only worker gone, they do not go to the other one, and it is said what they wait for."""
    cluster.workers.pop("own").stop()
    job = cluster.dctl("submit", "here", "--range", "0..0").stdout.decode().strip()
    assert run(cluster, "there", count=2) == [("foreign", FOREIGN)] * 2
    assert f"processor {HERE}" in cluster.dctl("explain", f"{job}.0").stdout.decode()
    cluster.start_worker("own")
    assert cluster.dctl("wait", job, "--timeout", DONE_S).returncode == 0
