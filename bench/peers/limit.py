"""Not a system but the machine's limit: two programs in C that only vfork, exec and wait, in the same minutes."""

from collections.abc import Mapping
from typing import ClassVar

from bench import limit
from bench.peers.base import Peer, PeerError, Place, Running
from bench.peers.driver import PROGRAM, dispatch, serve
from bench.peers.installation import Installation


class Limit(Peer):
    """No pipe, no folder, nobody told."""

    name: ClassVar[str] = "limit"
    title: ClassVar[str] = "two C programs, vfork + exec"
    durable: ClassVar[str] = "-"
    tasks: ClassVar[Mapping[str, int]] = {"true": 6000}

    def missing(self, there: Installation) -> str:
        """Without a compiler."""
        return limit.missing()

    def version(self, there: Installation) -> str:
        """It has none."""
        return ""

    def start(self, place: Place) -> Running:
        """Compiled each time; that is quick."""
        try:
            program = limit.compiled(place.folder)
        except limit.LimitError as error:
            raise PeerError(str(error)) from error
        return Running(place.drive(self, str(program)), [])


def drive(program: str, workers: str) -> None:
    """The client: so many of it side by side."""

    def run(tasks: int) -> None:
        limit.run(program, PROGRAM, tasks, int(workers))

    serve({"true": run})


if __name__ == "__main__":
    dispatch(drive)
