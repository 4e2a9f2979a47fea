"""`python -m bench scale`: how the coordinator bears many connected workers and many queued tasks.

For each number of workers (of `bench.crowd`: real connections, no work), in turn and in every round anew: the same job of
no-ops. For each number of tasks: a coordinator alone takes them in (a range; as many items of 100 bytes beside it), then
two one-slot workers do them, or as many as fit into a moment. TLS, `synchronous=FULL`, loopback.
Writes bench/results/scale.json and draws docs/benchmarks.md from it.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import Path
from typing import Final

from bench import draw, tables
from bench.client import write_token
from bench.crowd import crowd
from bench.machine import cpu_s, heading, rss_mb
from bench.peers.districomp import DEFINITIONS
from bench.processes import all_ended, scratch_folder
from bench.results import FOLDER, Point, Scale, figure, save
from demo.cluster import Cluster
from districomp.client import Client

CROWDS: Final = (1, 2, 10, 100, 1_000)
QUICK_CROWDS: Final = (1, 10)
CROWD_TASKS: Final = 100_000
TASKS: Final = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_TASKS: Final = (1_000, 10_000)
DONE_MAX: Final = 300_000
"""Results that are waited for: the rate does not change after so many."""
SEEN_MIN: Final = 100_000
"""With fewer tasks, memory and processor time of one are lost in those of the rest."""
DATA: Final = b"." * 100
DATA_TASKS_MAX: Final = 1_000_000
WORKERS: Final = 2


def main(argv: Sequence[str]) -> int:
    """0."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("workers", "tasks"))
    parser.add_argument("--quick", action="store_true", help="one round of the smallest, nothing written")
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of scale.json")
    given = parser.parse_args(argv)
    rounds = 1 if given.quick else given.rounds
    workers = [Point(count) for count in (QUICK_CROWDS if given.quick else CROWDS) if given.only != "tasks"]
    tasks = [Point(count) for count in (QUICK_TASKS if given.quick else TASKS) if given.only != "workers"]
    places = [(point, "workers", measure_workers) for point in workers]
    places += [(point, "tasks", measure_tasks) for point in tasks]
    with all_ended():
        for number in range(rounds):
            for point, what, measure in places if number % 2 == 0 else reversed(places):
                measure(point)
                _say(f"round {number + 1}, {point.at:,} {what}", point)
    result = Scale(heading(), rounds, workers, tasks)
    if given.quick:
        print(tables.scale(result))
    else:
        print(f"written: {save(result, given.results)}")
        if given.results == FOLDER:
            draw.write()
    return 0


def _say(what: str, point: Point) -> None:
    print(f"{what}: {', '.join(f'{name} {figure(values[-1])}' for name, values in point.figures.items())}", flush=True)


def measure_workers(point: Point) -> None:
    """The same job with this many workers connected."""
    with _coordinator() as (cluster, client, pid):
        before = rss_mb(pid)
        with crowd(cluster, point.at):
            point.add("worker_kb", max(0.0, 1e3 * (rss_mb(pid) - before) / point.at))
            rate, cpu_us = throughput(client, pid, CROWD_TASKS)
            point.add("noop", rate)
            point.add("cpu_us", cpu_us)
            point.add("rss_mb", rss_mb(pid))


def measure_tasks(point: Point) -> None:
    """Take in, and do, this many."""
    count = point.at
    with _coordinator() as (cluster, client, pid):
        before = rss_mb(pid)
        start = time.perf_counter()
        job = client.submit("noop", range=range(count))
        point.add("submit_ms", 1000 * (time.perf_counter() - start))
        after = rss_mb(pid)
        point.add("rss_mb", after)
        if count >= SEEN_MIN:
            point.add("queued_bytes", max(0.0, 1e6 * (after - before) / count))
        job.cancel()
        for number in range(WORKERS):
            cluster.start_worker(f"w{number}")
        cluster.wait_for_workers(WORKERS)
        rate, cpu_us = throughput(client, pid, count)
        point.add("noop", rate)
        if count >= SEEN_MIN:
            point.add("cpu_us", cpu_us)
    if SEEN_MIN <= count <= DATA_TASKS_MAX:
        with _coordinator() as (_, client, pid):
            before = rss_mb(pid)
            client.submit("noop", items=repeat(DATA, count))
            point.add("data_bytes", max(0.0, 1e6 * (rss_mb(pid) - before) / count))


def throughput(client: Client, coordinator: int, tasks: int) -> tuple[float, float]:
    """No-op tasks a second from submission on, and the coordinator's processor time a task in microseconds."""
    assert sum(1 for _ in client.submit("noop", range=range(1000)).results()) == 1000
    wanted = min(tasks, DONE_MAX)
    cpu_before = cpu_s(coordinator)
    start = time.perf_counter()
    job = client.submit("noop", range=range(tasks))
    count = sum(1 for _ in islice(job.results(), wanted))
    seconds = time.perf_counter() - start
    used = cpu_s(coordinator) - cpu_before
    if count < wanted:
        raise RuntimeError(f"{count} results of {wanted} tasks")
    if tasks > wanted:
        job.cancel()
    return count / seconds, 1e6 * used / count


@contextmanager
def _coordinator() -> Iterator[tuple[Cluster, Client, int]]:
    """A new one without workers, a client of it, and its process id."""
    with scratch_folder() as folder, Cluster(folder) as cluster:
        for name, text in DEFINITIONS.items():
            (cluster.config / "tasks.d" / f"{name}.yaml").write_text(text, encoding="utf-8")
        pid = cluster.start_coordinator().pid
        os.environ["DISTRICOMP_STATE_DIR"] = str(cluster.folder / "client")
        address, port = cluster.endpoint()["control"]
        with Client(f"{address}:{port}", write_token(cluster, "submit")) as client:
            client.status()
            yield cluster, client, pid
