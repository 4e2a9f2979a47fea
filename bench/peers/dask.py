"""dask.distributed: its scheduler, two workers of one thread, `Client.map` and `gather`."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench.peers.base import Place, Running, wait_for
from bench.peers.driver import dispatch, noop, serve_functions
from bench.peers.kinds import PythonPeer


class Dask(PythonPeer):
    """Functions of Python; results stay with the workers until they are gathered."""

    name: ClassVar[str] = "dask"
    title: ClassVar[str] = "dask.distributed"
    requirement: ClassVar[str] = "distributed==2026.8.0"
    durable: ClassVar[str] = "no"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 2000, "true": 1200, "map": 2000, "latency": 200, "queue": 20_000}

    def start(self, place: Place) -> Running:
        """Without nannies and dashboards; who needs the scheduler's address reads its file."""
        dask = place.there.python(self.name).parent / "dask"
        file = place.folder / "scheduler.json"
        where: list[str | Path] = ["--scheduler-file", file, "--no-dashboard", "--host", "127.0.0.1"]
        scheduler = place.start("scheduler", dask, "scheduler", *where, "--port", "0")
        wait_for(file.exists, "dask's scheduler")
        options: list[str | Path] = [
            "--nthreads",
            "1",
            "--nworkers",
            "1",
            "--no-nanny",
            "--local-directory",
            place.folder,
        ]
        place.start_workers(dask, "worker", *where, *options)
        return Running(place.drive(self, str(file), venv=True), [scheduler])


def drive(scheduler_file: str, workers: str) -> None:
    """The client."""
    import dask
    import distributed

    dask.config.set({"distributed.comm.timeouts.connect": "30s"})
    client = distributed.Client(scheduler_file=scheduler_file)
    if int(workers):
        client.wait_for_workers(int(workers))
    serve_functions(
        lambda function, tasks: client.map(function, range(tasks), pure=False),
        client.gather,
        lambda number: client.submit(noop, number, pure=False).result(),
    )


if __name__ == "__main__":
    dispatch(drive)
