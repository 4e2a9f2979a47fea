"""What the scripts of the worker's image do with tokens and settings, without building or booting anything."""

import argparse
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from districomp.tokens import JoinToken, format_token
from scripts import boot_image, worker_image

ROOT = Path(__file__).resolve().parents[2]
TOKEN = format_token(JoinToken("worker", bytes(range(16)), bytes(range(100, 116))))
SECRET = TOKEN.rpartition("-")[2]


def boot(folder: Path, **chosen: Any) -> list[str]:
    (folder / "cmdline").write_text("quiet\n")
    settings = {"image": folder, "memory": 512, "cpus": 2, "accel": "tcg", "bridge": "", "tap": "", "mac": ""}
    settings |= {"token_file": None, "cluster": "", "coordinator": "", "shell": None, "more": []}
    return boot_image.qemu(argparse.Namespace(**{**settings, **chosen}))


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_token_goes_through_memory_and_never_into_an_argument(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    if way == "environment":
        monkeypatch.setenv("TOKEN", TOKEN)
    command = boot(tmp_path, token_file=file if way == "file" else None)
    assert SECRET not in " ".join(command)
    path = command[command.index("-smbios") + 1].partition("path=")[2]
    assert Path(path).read_text() == f"io.systemd.credential:districomp.token={TOKEN}"
    opened = int(Path(path).name)
    assert os.get_inheritable(opened)
    os.close(opened)


def test_without_a_bridge_the_coordinator_of_this_machine_is_meant(tmp_path: Path) -> None:
    arguments = boot(tmp_path, cluster="a" * 26)[boot(tmp_path).index("-append") + 1].split()
    assert arguments == ["quiet", f"districomp.cluster={'a' * 26}", f"districomp.coordinator={boot_image.HOST}"]
    assert "-smbios" not in boot(tmp_path)
    assert boot(tmp_path, tap="t0", more=["-rtc", "base=utc"])[-2:] == ["-rtc", "base=utc"]
    assert not any("coordinator" in word for word in boot(tmp_path, tap="t0"))


def test_two_machines_have_different_network_cards(tmp_path: Path) -> None:
    assert boot(tmp_path) != boot(tmp_path)


def test_what_is_baked_in_is_for_its_owner_alone(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    for name in ("vmlinuz", "initrd.img", "cmdline"):
        (built / name).write_bytes(b"0000")
    file = tmp_path / "token"
    file.write_text(TOKEN)
    before = os.umask(0)
    try:
        with_token = worker_image.put(built, worker_image.baked(file, "", False), tmp_path / "a")
        without = worker_image.put(built, worker_image.baked(None, "A" * 26, True), tmp_path / "b")
    finally:
        os.umask(before)
    modes = [[stat.S_IMODE(path.stat().st_mode) for path in paths] for paths in (with_token, without)]
    assert modes == [[0o644, 0o600, 0o644], [0o644] * 3]
    assert SECRET.encode() in with_token[1].read_bytes()
    assert f"districomp.cluster={'a' * 26}".encode() in without[1].read_bytes()
    assert (built / "initrd.img").read_bytes() == b"0000", "the cache has no secret"


@pytest.mark.parametrize("text", ["", "dcw1-a-b", TOKEN[:-1], TOKEN.replace("dcw", "dca"), TOKEN + "\nx: y"])
def test_a_token_that_is_none_is_refused_and_not_repeated(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ValueError, match="dctl token create worker") as caught:
        worker_image.baked(file, "", False)
    assert SECRET[:-1] not in str(caught.value)


def test_a_clusters_name_is_refused_where_its_id_is_needed() -> None:
    with pytest.raises(ValueError, match="dctl status"):
        worker_image.baked(None, "lab", False)


def test_an_image_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "boot_image.py", "--image", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "make -C os image" in done.stderr
