"""districomp itself, as it comes: by TLS, its journal synced before it acknowledges, two workers of one slot."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from bench.peers.base import Peer, Place, Running
from bench.peers.driver import dispatch, serve
from bench.peers.installation import Installation

if TYPE_CHECKING:
    from districomp.client import Client

DEFINITIONS: Final = {
    "noop": "version: 1\nstream: [cat]\nretries: {max: 0}\n",
    "true": "version: 1\ncommand: [/bin/true]\nisolation: rlimit\nretries: {max: 0}\n",
}


class Districomp(Peer):
    """Results at the client, each once, in a journal before."""

    name: ClassVar[str] = "districomp"
    title: ClassVar[str] = "districomp"
    durable: ClassVar[str] = "yes, before it is acknowledged"
    note: ClassVar[str] = "with TLS"
    tasks: ClassVar[Mapping[str, int]] = {
        "noop": 100_000,
        "true": 3000,
        "map": 20_000,
        "latency": 500,
        "queue": 1_000_000,
    }

    def version(self, there: Installation) -> str:
        """Of this repository."""
        from districomp import __version__

        return __version__

    def start(self, place: Place) -> Running:
        """The demonstration's cluster."""
        from bench.client import write_token
        from demo.cluster import Cluster

        cluster = place.stack.enter_context(Cluster(place.folder))
        for name, text in DEFINITIONS.items():
            (cluster.config / "tasks.d" / f"{name}.yaml").write_text(text, encoding="utf-8")
        coordinator = cluster.start_coordinator()
        for number in range(place.workers):
            cluster.start_worker(f"w{number}")
        token = write_token(cluster, "submit")
        cluster.wait_for_workers(place.workers)
        address, port = cluster.endpoint()["control"]
        place.environment["DISTRICOMP_STATE_DIR"] = str(place.folder / "client")
        return Running(place.drive(self, f"{address}:{port}", str(token)), [coordinator.pid])


def run(client: "Client", definition: str, tasks: int) -> None:
    """Submit a range, and take every result."""
    job = client.submit(definition, range=range(1, tasks + 1))
    assert sum(1 for _ in job.results()) == tasks


def once(client: "Client", number: int) -> None:
    """One task with data, and its result."""
    (result,) = client.submit("noop", data=b"%d" % number).results()
    assert result


def drive(address: str, token: str, workers: str) -> None:
    """The client."""
    from districomp import Executor
    from districomp.client import Client

    with Client(address, Path(token)) as client, Executor(client) as executor:

        def call(tasks: int) -> None:
            """Of a function that is sent along: a worker's environment knows nothing of this repository."""
            assert sum(executor.map(lambda number: number, range(tasks), chunksize=1)) == sum(range(tasks))

        if int(workers):
            run(client, "noop", 1000)
            call(1000)
        serve(
            {
                "noop": lambda tasks: run(client, "noop", tasks),
                "true": lambda tasks: run(client, "true", tasks),
                "map": call,
                "once": lambda number: once(client, number),
                "queue": lambda tasks: client.submit("noop", range=range(tasks)),
            }
        )


if __name__ == "__main__":
    dispatch(drive)
