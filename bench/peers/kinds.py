"""Kinds of systems by where they come from: what their adapters have in common. Standard library only."""

from abc import abstractmethod
from typing import ClassVar

from bench.peers.base import Peer, Place, Running, free_port, is_listening, wait_for
from bench.peers.installation import Installation


class PythonPeer(Peer):
    """A package of Python in a virtual environment of its own."""

    requirement: ClassVar[str]
    """NAME==VERSION."""

    def install(self, there: Installation) -> None:
        """One virtual environment."""
        there.install_python(self.name, self.requirement)

    def missing(self, there: Installation) -> str:
        """Without it."""
        return "" if there.has_python(self.name, self.requirement) else "not installed"

    def version(self, there: Installation) -> str:
        """As pinned."""
        return self.requirement.partition("==")[2]


class BareQueue(Peer):
    """A server of Debian's on one port; its workers and client are parts `work` and `drive` of the adapter's module."""

    package: ClassVar[str]
    program: ClassVar[str]

    @abstractmethod
    def options(self, place: Place, port: str) -> list[str]:
        """Of the server."""

    def install(self, there: Installation) -> None:
        """One package."""
        there.install_debian(self.package)

    def missing(self, there: Installation) -> str:
        """Without it."""
        return there.missing_programs(self.program)

    def version(self, there: Installation) -> str:
        """Debian's."""
        return there.debian_version(self.package)

    def start(self, place: Place) -> Running:
        """Server, workers, client."""
        port = str(free_port())
        pid = place.start("server", place.there.found(self.program), *self.options(place, port))
        wait_for(lambda: is_listening(int(port)), self.program)
        place.start_workers(*place.module(self, "work", port, venv=False))
        return Running(place.drive(self, port), [pid])
