"""ProcessPoolExecutor of Python's standard library: two processes, one machine. What `Executor.map` is held against."""

import platform
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import ClassVar

from bench.peers.base import Peer, Place, Running
from bench.peers.driver import dispatch, noop, run_true, serve
from bench.peers.installation import Installation


class Pool(Peer):
    """No network, nothing on disk."""

    name: ClassVar[str] = "pool"
    title: ClassVar[str] = "ProcessPoolExecutor"
    durable: ClassVar[str] = "no"
    note: ClassVar[str] = "this machine's own processes, no network"
    tasks: ClassVar[Mapping[str, int]] = {"map": 10_000, "true": 3000, "latency": 300}

    def version(self, there: Installation) -> str:
        """Python's."""
        return platform.python_version()

    def start(self, place: Place) -> Running:
        """The client makes the pool."""
        driver = place.drive(self)
        return Running(driver, [driver.pid])


def drive(workers: str) -> None:
    """The client."""
    pool = ProcessPoolExecutor(int(workers))
    assert sum(pool.map(noop, range(100))) == sum(range(100))
    serve(
        {
            "map": lambda tasks: list(pool.map(noop, range(tasks), chunksize=1)),
            "true": lambda tasks: list(pool.map(run_true, range(tasks), chunksize=1)),
            "once": lambda number: pool.submit(noop, number).result(),
        }
    )


if __name__ == "__main__":
    dispatch(drive)
