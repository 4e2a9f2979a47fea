"""The machine's own limit: programs in C that only vfork, exec and wait (`spawn_limit.c`), for the same minute as what is measured."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parent / "spawn_limit.c"


class LimitError(Exception):
    """It cannot be compiled."""


def missing() -> str:
    """What is not there to compile it with, '' if all is."""
    return "" if shutil.which("gcc") else "not installed: gcc"


def compiled(folder: Path) -> Path:
    """The program, compiled into a folder; that is quick. LimitError."""
    program = folder / "spawn_limit"
    command = ["gcc", "-O2", "-Wall", str(SOURCE), "-o", str(program)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LimitError(f"{SOURCE.name} does not compile: {' | '.join(done.stderr.splitlines()[-3:])}")
    return program


def run(program: Path | str, target: str, count: int, at_once: int) -> float:
    """Start a target so often, that many side by side; how many a second."""
    begun = time.perf_counter()
    running = [subprocess.Popen([program, str(count // at_once), target]) for _ in range(at_once)]
    assert not [process for process in running if process.wait()]
    return count // at_once * at_once / (time.perf_counter() - begun)
