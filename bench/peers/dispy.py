"""dispy: one node of two processors, a cluster whose scheduler is a thread of the client, on loopback."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.peers.base import Place, Running, free_port
from bench.peers.driver import Took, dispatch, serve
from bench.peers.kinds import PythonPeer

ATTEMPTS: Final = 5


class Dispy(PythonPeer):
    """Functions of Python, whose source is sent; a process for each call."""

    name: ClassVar[str] = "dispy"
    title: ClassVar[str] = "dispy"
    requirement: ClassVar[str] = "dispy==4.15.2"
    durable: ClassVar[str] = "no"
    note: ClassVar[str] = "its node loses the race with a task this short now and then; such a one is submitted again"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 300, "true": 300, "latency": 100, "queue": 10_000}

    def start(self, place: Place) -> Running:
        """One node with the wanted number of processors."""
        port = str(free_port())
        if place.workers:
            node = place.there.python(self.name).parent / "dispynode.py"
            options: list[str | Path] = [
                "-i",
                "127.0.0.1",
                "-p",
                port,
                "--clean",
                "--daemon",
                "--dest_path_prefix",
                place.folder / "node",
            ]
            place.start("node", place.there.python(self.name), node, "-c", str(place.workers), *options)
        driver = place.drive(self, port, venv=True)
        return Running(driver, [driver.pid])


def noop(number: int) -> int:
    """As `driver.noop`; the node is sent its source."""
    return number


def run_true(_number: int) -> int:
    """As `driver.run_true`, in fewer lines: the node is sent this source alone."""
    import subprocess

    return len(subprocess.run(["/bin/true"], stdout=subprocess.PIPE, check=True).stdout)


def drive(port: str, workers: str) -> None:
    """The client: two clusters of one function each would need two nodes, so there is one at a time."""
    import logging

    import dispy

    current: list[Any] = []

    def cluster(function: object) -> Any:
        if not current or current[1] is not function:
            if current:
                current[0].close(timeout=5)
            current[:] = (
                dispy.JobCluster(
                    function, nodes=["127.0.0.1"], host="127.0.0.1", dispy_port=int(port), loglevel=logging.ERROR
                ),
                function,
            )
            if int(workers):
                current[0].submit(0)()
        return current[0]

    def run(function: object, tasks: int) -> Took:
        import time

        there = cluster(function)
        start = time.perf_counter()
        left = list(range(tasks))
        for _ in range(ATTEMPTS):
            jobs = [(number, there.submit(number)) for number in left]
            left = [number for number, job in jobs if job() is None and job.exception]
            if not left:
                break
        assert not left, f"{len(left)} of {tasks} jobs failed {ATTEMPTS} times"
        return Took(time.perf_counter() - start)

    kept: list[object] = []
    cluster(noop)
    serve(
        {
            "noop": lambda tasks: run(noop, tasks),
            "true": lambda tasks: run(run_true, tasks),
            "once": lambda _: run(noop, 1),
            "queue": lambda tasks: kept.extend(cluster(noop).submit(number) for number in range(tasks)),
        }
    )


if __name__ == "__main__":
    dispatch(drive)
