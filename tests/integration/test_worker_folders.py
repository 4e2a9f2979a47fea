"""Working directories: what serves again, what is removed, and that nothing outside is touched."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dworker.runners.folders import Folders, emptied
from tests.patience import PATIENCE_S

WAIT_S = PATIENCE_S


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def folders(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[Folders]:
    with ThreadPoolExecutor(1) as executor:
        made = Folders(emptied(tmp_path / "run", executor), executor, loop)
        yield made
        made.close()


def wait_until(condition: Callable[[], bool], loop: asyncio.AbstractEventLoop) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        loop.run_until_complete(asyncio.sleep(0.02))


def wait_for_a_later_time_stamp(folder: Path) -> None:
    """The clock of a file system may stand still for some milliseconds."""
    probe = folder / "probe"
    probe.touch()
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        probe.unlink()
        probe.touch()
    probe.unlink()


def test_an_untouched_folder_serves_again_and_only_for_its_bundle(folders: Folders, tmp_path: Path) -> None:
    plain = folders.make(None, [])
    linked = folders.make(tmp_path, ["a", "b"])
    assert sorted(path.name for path in Path(linked).iterdir()) == ["a", "b"]
    folders.remove(plain)
    folders.remove(linked)
    assert folders.make(tmp_path / "other", []) not in (plain, linked)
    assert folders.make(tmp_path, ["a", "b"]) == linked
    assert folders.make(None, []) == plain


@pytest.mark.parametrize(
    "way", ["leaves a file", "made a file and removed it", "changed its mode", "changed a link", "removed it"]
)
def test_a_touched_folder_is_removed(
    folders: Folders, loop: asyncio.AbstractEventLoop, tmp_path: Path, way: str
) -> None:
    folder = Path(folders.make(tmp_path, ["a"]))
    wait_for_a_later_time_stamp(tmp_path)
    if way == "leaves a file":
        (folder / "file").touch()
    elif way == "made a file and removed it":
        (folder / "file").touch()
        (folder / "file").unlink()
    elif way == "changed its mode":
        folder.chmod(0o755)
        folder.chmod(0o700)
    elif way == "changed a link":
        (folder / "a").unlink()
        (folder / "a").symlink_to("/elsewhere")
    else:
        shutil.rmtree(folder)
    folders.remove(str(folder))
    assert folders.make(tmp_path, ["a"]) != str(folder)
    wait_until(lambda: not folder.exists(), loop)


def test_a_spare_folder_is_removed_when_nobody_needs_it(folders: Folders, loop: asyncio.AbstractEventLoop) -> None:
    folder = Path(folders.make(None, []))
    folders.remove(str(folder))
    assert folder.exists()
    wait_until(lambda: not folder.exists(), loop)


def test_a_tree_goes_whatever_its_permissions_and_what_its_links_name_stays() -> None:
    """As an ordinary user: permissions mean nothing to root."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        outside, tree = base / "outside", base / "tree"
        outside.mkdir()
        (outside / "kept").touch()
        (tree / "a" / "b" / "c").mkdir(parents=True)
        (tree / "a" / "b" / "file").touch(mode=0)
        (tree / "link").symlink_to(outside)
        (tree / "a" / "loop").symlink_to(tree)
        user = 65534 if os.getuid() == 0 else os.getuid()
        if os.getuid() == 0:
            for path in [base, outside, tree, *tree.rglob("*")]:
                os.chown(path, user, -1, follow_symlinks=False)
        (tree / "a" / "b").chmod(0)
        (tree / "a").chmod(0o500)
        code = (
            "import os, sys\nfrom dworker.runners.folders import remove_tree\n"
            f"if os.getuid() == 0: os.setuid({user})\nremove_tree(sys.argv[1])\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tree)], check=True, cwd="/")
        assert not tree.exists()
        assert (outside / "kept").exists()


def test_a_clock_that_stands_still_hides_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change within a tick of the folder's making leaves the same time: then it is listed."""
    folder = Path(folders.make(None, []))
    made = folder.stat()

    class Clock:
        """As if no time had passed since."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def stat(self, *_: object, **__: object) -> os.stat_result:
            return made

    monkeypatch.setattr("dworker.runners.folders.os", Clock())
    (folder / "left").touch()
    folders.remove(str(folder))
    assert folders.make(None, []) != str(folder)
