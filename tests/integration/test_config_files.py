"""Settings from real files: the shipped, commented ones, absent ones, unreadable ones."""

import re
from pathlib import Path

import pytest
from msgspec.structs import fields

from districomp.config import (
    CoordinatorConfig,
    Paths,
    WorkerConfig,
    load_coordinator,
    load_worker,
    parse_coordinator_file,
    parse_worker_file,
)
from districomp.errors import ConfigError
from districomp.taskfile import parse_definition

CONFIG = Path(__file__).resolve().parents[2] / "config"


def uncommented(text: str) -> bytes:
    """A shipped file with every default in force: '#' goes from the lines that hold a key."""
    return re.sub(r"(?m)^#(?=(?:  +)?[a-z_]+:)", "", text).encode()


def test_the_shipped_files_say_nothing_until_edited() -> None:
    paths = Paths(Path("/var/lib/districomp"), Path("/c"), Path("/r"))
    for name in ("dcoord.yaml", "dworker.yaml"):
        text = (CONFIG / name).read_text()
        assert all(not line or line.startswith("#") for line in text.splitlines()), name
    assert load_coordinator(CONFIG / "dcoord.yaml", paths) == load_coordinator(None, paths)
    assert load_worker(CONFIG / "dworker.yaml", paths, {}) == load_worker(None, paths, {})


def test_the_shipped_files_name_every_key_with_its_default() -> None:
    paths = Paths(Path("/var/lib/districomp"), Path("/c"), Path("/r"))
    text = (CONFIG / "dcoord.yaml").read_text()
    found = parse_coordinator_file(uncommented(text), "dcoord.yaml", paths)
    default = parse_coordinator_file(b"name: lab", "dcoord.yaml", paths)
    assert found == default
    text += (CONFIG / "dworker.yaml").read_text()
    parse_worker_file(uncommented((CONFIG / "dworker.yaml").read_text()), "dworker.yaml", {})
    keys = [field.encode_name for cls in (CoordinatorConfig, WorkerConfig) for field in fields(cls)]
    assert [key for key in keys if f"#{key}:" not in text] == []


def test_the_drop_in_is_a_definition() -> None:
    for path in sorted((CONFIG / "tasks.d").glob("*.yaml")):
        assert parse_definition(path.read_bytes(), str(path), path.stem).argv


def test_absent_files_are_defaults_but_not_when_they_were_named(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "config", tmp_path / "run")
    assert load_coordinator(None, paths).journal.path == tmp_path / "state" / "dcoord" / "journal.sqlite"
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: No such file or directory"):
        load_coordinator(tmp_path / "nothing.yaml", paths)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_worker(tmp_path, paths, {})


def test_the_file_of_the_configuration_folder_is_read(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path)
    (tmp_path / "dcoord.yaml").write_text("lease: 3s")
    (tmp_path / "dworker.yaml").write_text("slots: 7")
    assert load_coordinator(None, paths).lease_s == 3.0
    assert load_worker(None, paths, {}).slots == 7
    (tmp_path / "dworker.yaml").write_bytes(b"#" * (2 * 1024 * 1024))
    with pytest.raises(ConfigError, match="262,144 are allowed"):
        load_worker(None, paths, {})
