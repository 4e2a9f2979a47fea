"""HyperQueue: its LocalCluster (server and two workers of one core as threads of one process), its Python client."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.base import Place, Running, wait_for
from bench.peers.driver import PROGRAM, Took, dispatch, serve
from bench.peers.kinds import PythonPeer

NOTIFY_S: Final = 60.0


class HyperQueue(PythonPeer):
    """Programs; what they print goes into files, as it does unless one says otherwise."""

    name: ClassVar[str] = "hyperqueue"
    title: ClassVar[str] = "HyperQueue"
    requirement: ClassVar[str] = "hyperqueue==0.27.0"
    durable: ClassVar[str] = "no (its journal off)"
    note: ClassVar[str] = "has no no-op: its latency is a process's, from submission to its having run"
    tasks: ClassVar[Mapping[str, int]] = {"true": 1200, "latency": 60, "queue": 50_000}

    def start(self, place: Place) -> Running:
        """The server says where it is when it is ready."""
        folder = place.folder / "server"
        pid = place.start("server", *place.module(self, "keep", str(folder), str(place.workers), venv=True))
        wait_for(lambda: "ready" in place.log_text("server"), "HyperQueue's server")
        return Running(place.drive(self, str(folder), venv=True), [pid])


def keep(folder: str, workers: str) -> None:
    """The cluster, until it is ended."""
    from hyperqueue import LocalCluster
    from hyperqueue.cluster import WorkerConfig

    Path(folder).mkdir()
    cluster = LocalCluster(folder)
    for _ in range(int(workers)):
        cluster.start_worker(WorkerConfig(cores=1))
    print("ready", flush=True)
    while True:
        time.sleep(3600)


def drive(folder: str, workers: str) -> None:
    """The client. Its own wait asks once a second, so a last task of lower priority tells the end by a datagram."""
    from hyperqueue import Client, Job

    client = Client(folder)
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind(("127.0.0.1", 0))
    ear.settimeout(NOTIFY_S)
    notify = ["/bin/bash", "-c", f"echo > /dev/udp/127.0.0.1/{ear.getsockname()[1]}"]

    def job(tasks: int, *, told: bool) -> Job:
        made = Job(max_fails=None, default_workdir=folder)
        for _ in range(tasks):
            made.program([PROGRAM])
        if told:
            made.program(notify, stdout=None, stderr=None, priority=-1)
        return made

    def run(tasks: int) -> Took:
        made = job(tasks, told=True)
        start = time.perf_counter()
        client.submit(made)
        ear.recv(16)
        return Took(time.perf_counter() - start)

    if int(workers):
        run(20)
    serve({"true": run, "once": lambda _: run(0), "queue": lambda tasks: client.submit(job(tasks, told=False))})


if __name__ == "__main__":
    dispatch(keep, drive)
