"""Working directories: a fresh one for each process, its bundle linked into it, gone afterwards."""

import contextlib
import os
import shutil
import stat
from concurrent.futures import Executor
from pathlib import Path
from typing import Any


class Folders:
    """Makes and removes folders below `root`, which is emptied at the start: a killed worker leaves some behind."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._executor = executor
        self._next = 0
        leftover = root.with_name(root.name + ".old")
        if root.exists():
            if leftover.exists():
                remove_tree(str(leftover))
            root.rename(leftover)
        if leftover.exists():
            executor.submit(remove_tree, str(leftover))
        root.mkdir(mode=0o700, parents=True)
        self._root = str(root)

    def make(self, bundle: Path | None, entries: list[str]) -> str:
        """A new folder, with a link to each of the bundle's top-level entries. OSError if the disk refuses."""
        self._next += 1
        folder = f"{self._root}/{self._next}"
        os.mkdir(folder, 0o700)  # noqa: PTH102 -- once a task
        for entry in entries:
            os.symlink(f"{bundle}/{entry}", f"{folder}/{entry}")  # noqa: PTH211 -- as above
        return folder

    def remove(self, folder: str, entries: list[str]) -> None:
        """Remove a folder and whatever the task left there; in a thread if it is more than the links."""
        try:
            for entry in entries:
                os.unlink(f"{folder}/{entry}")  # noqa: PTH108 -- once a task
            os.rmdir(folder)  # noqa: PTH106 -- as above
        except OSError:
            with contextlib.suppress(RuntimeError):  # the daemon is on its way out
                self._executor.submit(remove_tree, folder)


def remove_tree(path: str) -> None:
    """Remove a tree, links not followed, folders without permissions included; what cannot go stays."""

    def again(function: Any, name: str, _: Any) -> None:
        with contextlib.suppress(OSError):
            Path(name).parent.chmod(stat.S_IRWXU)
            if not Path(name).is_symlink() and Path(name).is_dir():
                Path(name).chmod(stat.S_IRWXU)
                shutil.rmtree(name, ignore_errors=True)
            else:
                function(name)

    shutil.rmtree(path, onerror=again)
