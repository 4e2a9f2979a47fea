"""A state folder that cannot be used: each start ends with one sentence that says what, where and what to do."""

import resource
import shutil
import subprocess
from pathlib import Path

import apsw
import pytest

from demo.cluster import Cluster, script
from tests.patience import PATIENCE_S

CONFIG = "listen: {address: 127.0.0.1, port: 0}\nweb: {port: 0, spawn: false}\ndata: {port: 0}\nadvertise: false\n"


def start(tmp_path: Path, state: Path, *, file_bytes_max: int | None = None) -> "subprocess.CompletedProcess[str]":
    """`dcoord` on a state folder, until it ends by itself."""
    config = tmp_path / "dcoord.yaml"
    config.write_text(CONFIG)
    environment = Cluster(tmp_path / "cluster").environment | {"DISTRICOMP_STATE_DIR": str(state)}

    def limit() -> None:
        if file_bytes_max is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    return subprocess.run(
        [script("dcoord"), "--config", str(config)],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False, preexec_fn=limit,
    )  # fmt: skip


def says(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    """It ended with an error of one line, without a traceback, that has all parts."""
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in last, done.stderr


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    says(start(tmp_path, Path("/proc/districomp")), "/proc/districomp")


def test_a_file_where_the_state_folder_should_be(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("not a folder")
    says(start(tmp_path, state), str(state))


def test_a_full_disk_at_the_start(tmp_path: Path) -> None:
    says(start(tmp_path, tmp_path / "state", file_bytes_max=0), "authority.json", "File too large")


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The journal of a coordinator that ran and stopped."""
    with Cluster(tmp_path / "before") as cluster:
        cluster.start_coordinator()
        state = Path(cluster.environment["DISTRICOMP_STATE_DIR"])
    copy = tmp_path / "state"
    shutil.copytree(state, copy)
    return copy / "dcoord" / "journal.sqlite"


def test_a_journal_of_a_newer_version(tmp_path: Path, used: Path) -> None:
    connection = apsw.Connection(str(used))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    says(start(tmp_path, used.parents[1]), str(used), "version 99", "install")


def test_a_journal_that_is_no_journal(tmp_path: Path, used: Path) -> None:
    for name in (used.name + "-wal", used.name + "-shm"):
        (used.parent / name).unlink(missing_ok=True)
    used.write_bytes(b"These are notes of mine.\n" * 100)
    says(start(tmp_path, used.parents[1]), str(used), "not a journal")
    assert used.read_bytes().startswith(b"These are notes")


def test_a_journal_that_is_damaged(tmp_path: Path, used: Path) -> None:
    data = bytearray(used.read_bytes())
    for at in range(4096, len(data) - 2048, 4096):
        data[at : at + 2048] = b"\xff" * 2048
    used.write_bytes(data)
    for name in (used.name + "-wal", used.name + "-shm"):
        (used.parent / name).unlink(missing_ok=True)
    says(start(tmp_path, used.parents[1]), str(used))
