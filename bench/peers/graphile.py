"""graphile-worker on PostgreSQL: jobs added by calls of ten thousand, run by one worker process, no results returned."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.base import Peer, PeerError, Place, Running, free_port, wait_for
from bench.peers.installation import Installation
from bench.processes import NOBODY, Processes

VERSION: Final = "0.17.3"
PIN: Final = f"graphile-worker@{VERSION}"


class Graphile(Peer):
    """Handlers inside the worker's process."""

    name: ClassVar[str] = "graphile"
    title: ClassVar[str] = "graphile-worker"
    durable: ClassVar[str] = "yes"
    note: ClassVar[str] = "handlers in the worker's process, which is the client too; returns no results"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 20_000, "true": 800, "latency": 200}

    def install(self, there: Installation) -> None:
        """From npm, and Debian's PostgreSQL."""
        there.install_debian("postgresql")
        there.install_node(PIN)

    def missing(self, there: Installation) -> str:
        """Without either."""
        if not shutil.which("node"):
            return "not installed: node"
        return there.missing_programs("initdb", "postgres") if there.has_node(PIN) else "not installed"

    def version(self, there: Installation) -> str:
        """Both."""
        return f"{VERSION} on PostgreSQL {there.debian_version('postgresql')}"

    def start(self, place: Place) -> Running:
        """A server with its defaults: synchronous_commit is on."""
        port = str(free_port())
        data = place.folder / "postgres"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(data, NOBODY, NOBODY)
        self._initialise(place, data)
        options: list[str | Path] = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "max_connections=60",
        ]
        pid = place.start("postgres", place.there.found("postgres"), "-D", data, "-p", port, *options, nobody=True)
        wait_for(lambda: "ready to accept connections" in place.log_text("postgres"), "PostgreSQL")
        place.environment |= {
            "PGURL": f"postgres://bench@127.0.0.1:{port}/postgres",
            "NODE_FOLDER": str(place.there.node_folder()),
        }
        script = Path(__file__).with_suffix(".mjs")
        return Running(place.drive_program("node", script, str(place.workers)), [pid])

    @staticmethod
    def _initialise(place: Place, data: Path) -> None:
        processes = Processes(place.folder)
        process = processes.start(
            "initdb", [place.there.found("initdb"), "-D", data, "-U", "bench", "--auth=trust", "--no-sync", "--locale=C"],
            environment=place.environment, cwd=data, nobody=True,
        )  # fmt: skip
        if process.wait():
            raise PeerError(f"initdb failed: {place.log_text('initdb')[-500:]}")
