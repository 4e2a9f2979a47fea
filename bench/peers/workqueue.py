"""Work Queue of the Cooperative Computing Tools: a manager of ours in C, two of its workers of one core."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.base import Peer, Place, Running, free_port
from bench.peers.installation import Installation, InstallError

LIBRARIES: Final = ("-lwork_queue", "-ldttools", "-lm", "-lpthread", "-lcrypto", "-lssl", "-lz")
SOURCE: Final = Path(__file__).with_suffix(".c")


class WorkQueue(Peer):
    """Programs through a shell, each in a folder of its own."""

    name: ClassVar[str] = "workqueue"
    title: ClassVar[str] = "Work Queue"
    durable: ClassVar[str] = "no"
    note: ClassVar[str] = "has no no-op: its latency is a process's"
    tasks: ClassVar[Mapping[str, int]] = {"true": 400, "latency": 100, "queue": 50_000}

    def install(self, there: Installation) -> None:
        """Debian's, and the manager compiled against its library."""
        there.install_debian("coop-computing-tools", "coop-computing-tools-dev", "libssl-dev", "zlib1g-dev")
        if not shutil.which("gcc"):
            raise InstallError("Work Queue's manager is C, and gcc is not there: install gcc and libc6-dev")
        usr = there.library_folder()
        folders = [f"-I{usr}/include", *(f"-L{path}" for path in [usr / "lib", *(usr / "lib").glob("*-linux-gnu*")])]
        command = ["gcc", "-O2", "-Wall", *folders, str(SOURCE), "-o", str(self._manager(there)), *LIBRARIES]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise InstallError(f"{SOURCE.name} does not compile: {' | '.join(done.stderr.splitlines()[-3:])}")

    def missing(self, there: Installation) -> str:
        """Without the worker or our manager."""
        if not self._manager(there).exists():
            return "not installed: its manager"
        return there.missing_programs("work_queue_worker")

    def version(self, there: Installation) -> str:
        """Debian's."""
        return there.debian_version("coop-computing-tools")

    def start(self, place: Place) -> Running:
        """The workers ask for the manager until it is there; it is ready when both have come."""
        port = str(free_port())
        limits: list[str | Path] = [
            "--cores",
            "1",
            "--memory",
            "1000",
            "--disk",
            "1000",
            "-s",
            place.folder,
            "-t",
            "60",
        ]
        place.start_workers(place.there.found("work_queue_worker"), *limits, "127.0.0.1", port)
        driver = place.drive_program(self._manager(place.there), port, str(place.workers))
        return Running(driver, [driver.pid])

    @staticmethod
    def _manager(there: Installation) -> Path:
        return there.folder / "work_queue_manager"
