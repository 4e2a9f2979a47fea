"""Submissions of many lines are streamed: neither who submits nor the coordinator holds them whole."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from bench.arrays import submit, write_lines
from bench.restart import STATES, measure
from demo.cluster import Cluster
from districomp.client import Client

LINES = 1_000_000
MANY = 10_000_000
LISTED = 5000
HELD_MB_MAX = 60.0
"""The lines are 101 MB in their file, and 150 MB as objects."""


def highest_mb(pid: int) -> float:
    """The most memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"process {pid} has no memory")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A coordinator without workers that knows a definition which takes lines."""
    with Cluster(tmp_path) as cluster:
        (cluster.config / "tasks.d" / "cat.yaml").write_text("version: 1\nstream: [cat]\n", encoding="ascii")
        cluster.start_coordinator()
        yield cluster


@pytest.mark.parametrize("form", ["file", "pipe"])
def test_lines_are_held_whole_by_nobody(cluster: Cluster, form: str) -> None:
    assert cluster.coordinator is not None
    before_mb = highest_mb(cluster.coordinator.pid)
    if form == "file":
        path = cluster.folder / "lines"
        with path.open("wb") as file:
            write_lines(file, LINES)
        job, _, client_mb = submit(cluster, ["cat", "--each-line", str(path)])
    else:
        with fed_pipe() as source:
            job, _, client_mb = submit(cluster, ["cat", "--each-line", "-"], source)
    assert cluster.dctl_json("job", "show", str(job))["tasks"] == LINES
    assert client_mb < HELD_MB_MAX
    assert highest_mb(cluster.coordinator.pid) - before_mb < HELD_MB_MAX


@contextlib.contextmanager
def fed_pipe() -> Iterator[IO[bytes]]:
    """A pipe's end to read, with the lines coming."""
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb") as file:
            write_lines(file, LINES)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(read, "rb") as source:
        yield source
    feeder.join()


def test_ten_million_tasks_are_looked_at_without_reading_them_all(cluster: Cluster) -> None:
    job, _, _ = submit(cluster, ["cat", "--range", f"1..{MANY}"])
    assert cluster.dctl("task", "list", str(job), "--limit", "3", "-q").stdout.split() == [b"1.0", b"1.1", b"1.2"]
    assert cluster.dctl_json("task", "list", str(job), "--state", "done") == []
    assert cluster.dctl_json("task", "show", f"{job}.{MANY - 1}")["data_bytes"] == len(str(MANY))
    (cancelled,) = cluster.dctl_json("job", "cancel", str(job), "--yes")
    assert cancelled["counts"]["cancelled"] == MANY
    assert cluster.dctl_json("task", "show", f"{job}.{MANY - 1}")["state"] == "cancelled"
    (shown,) = cluster.dctl_json("task", "list", str(job), "--limit", "1")
    assert shown["state"] == "cancelled"
    assert cluster.dctl_json("job", "retry", str(job))["counts"]["queued"] == MANY
    assert cluster.coordinator is not None
    assert highest_mb(cluster.coordinator.pid) < 6 * MANY / 1e6 + 100.0


def test_tasks_are_listed_once_each_through_a_restart(cluster: Cluster) -> None:
    job, _, _ = submit(cluster, ["cat", "--range", f"1..{LISTED}"])
    with Client(str(cluster.runtime / "control.sock")) as client:
        tasks = client.each_task(job)
        seen = [next(tasks).task]
        assert cluster.coordinator is not None
        cluster.coordinator.kill()
        cluster.start_coordinator()
        seen += [task.task for task in tasks]
    assert seen == [f"{job}.{index}" for index in range(LISTED)]


@pytest.mark.parametrize("name", ["order", "scattered", "mixed", "lines"])
def test_after_a_restart_the_first_lease_is_above_the_frontier(tmp_path: Path, name: str) -> None:
    # What `measure` asserts is the test; its figures are the benchmark's.
    assert measure(tmp_path, STATES[name](5000), 5000, 20_000, 2)
