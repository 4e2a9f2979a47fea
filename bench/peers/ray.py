"""Ray: a head node of two processors, remote functions, `ray.get` of the list."""

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from bench.peers.base import Place, Running
from bench.peers.driver import dispatch, noop, run_true, serve_functions
from bench.peers.kinds import PythonPeer

STORE_BYTES: Final = 1 << 30


class Ray(PythonPeer):
    """Functions of Python; the queue lies in the client, the results in shared memory."""

    name: ClassVar[str] = "ray"
    title: ClassVar[str] = "Ray"
    requirement: ClassVar[str] = "ray==2.60.0"
    durable: ClassVar[str] = "no"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 3000, "true": 1500, "map": 3000, "latency": 300, "queue": 10_000}

    def start(self, place: Place) -> Running:
        """The client starts the node's daemons itself; a processor is a worker."""
        place.environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        # Ray makes Unix sockets below its folder, whose paths are long as it is.
        driver = place.drive(self, str(place.folder), venv=True)
        return Running(driver, [driver.pid])


def drive(folder: str, workers: str) -> None:
    """The client, and the node as its children."""
    import ray

    ray.init(
        num_cpus=int(workers),
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.path.realpath(folder),
    )
    functions: tuple[Callable[[int], Any], ...] = (noop, run_true)
    remotes = {function: ray.remote(function) for function in functions}

    def submit(function: Callable[[int], Any], tasks: int) -> list[Any]:
        remote = remotes[function]
        return [remote.remote(number) for number in range(tasks)]

    if int(workers):
        ray.get(submit(noop, 100))
    serve_functions(submit, ray.get, lambda number: ray.get(remotes[noop].remote(number)))


if __name__ == "__main__":
    dispatch(drive)
