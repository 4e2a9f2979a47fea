"""Not a system but the machine's limit: two programs in C that only vfork, exec and wait, in the same minutes."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.base import Peer, PeerError, Place, Running
from bench.peers.driver import PROGRAM, dispatch, serve
from bench.peers.installation import Installation

SOURCE: Final = Path(__file__).resolve().parents[1] / "spawn_limit.c"


class Limit(Peer):
    """No pipe, no folder, nobody told."""

    name: ClassVar[str] = "limit"
    title: ClassVar[str] = "two C programs, vfork + exec"
    durable: ClassVar[str] = "-"
    tasks: ClassVar[Mapping[str, int]] = {"true": 6000}

    def missing(self, there: Installation) -> str:
        """Without a compiler."""
        return "" if shutil.which("gcc") else "not installed: gcc"

    def version(self, there: Installation) -> str:
        """It has none."""
        return ""

    def start(self, place: Place) -> Running:
        """Compiled each time; that is quick."""
        program = place.folder / "spawn_limit"
        command = ["gcc", "-O2", "-Wall", str(SOURCE), "-o", str(program)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"{SOURCE.name} does not compile: {' | '.join(done.stderr.splitlines()[-3:])}")
        return Running(place.drive(self, str(program)), [])


def drive(program: str, workers: str) -> None:
    """The client: so many of it side by side."""

    def run(tasks: int) -> None:
        share = str(tasks // int(workers))
        running = [subprocess.Popen([program, share, PROGRAM]) for _ in range(int(workers))]
        assert not [process for process in running if process.wait()]

    serve({"true": run})


if __name__ == "__main__":
    dispatch(drive)
