"""`python -m bench.executor`: `Executor.map` of a trivial function, chunksize 1, beside `ProcessPoolExecutor.map`, in turn.

A coordinator (journal with synchronous=FULL), two one-slot workers and one client on loopback by TLS; the pool has two
processes. Every result is at the client. `submit`: futures one by one, all in flight. `--json FILE` writes what the tables show.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor as AnyExecutor
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.client import client_of
from bench.machine import cpu_s, heading, summary
from bench.results import percentile
from demo.cluster import Cluster
from districomp import Executor


def map_rate(executor: AnyExecutor, calls: int) -> float:
    """Calls a second from `map` until every result is here."""
    start = time.perf_counter()
    results = list(executor.map(abs, range(calls)))
    seconds = time.perf_counter() - start
    assert results == list(range(calls))
    return calls / seconds


def submit_rate(executor: AnyExecutor, calls: int) -> float:
    """Calls a second from the first `submit` until every future has its result."""
    start = time.perf_counter()
    made = [executor.submit(abs, number) for number in range(calls)]
    results = [future.result() for future in made]
    seconds = time.perf_counter() - start
    assert results == list(range(calls))
    return calls / seconds


def round_trips_ms(executor: AnyExecutor, runs: int) -> list[float]:
    """From `submit` to the result, one call at a time."""
    times = []
    for number in range(runs):
        start = time.perf_counter()
        executor.submit(abs, number).result()
        times.append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--pool-calls", type=int, default=10_000)
    parser.add_argument("--latency", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster, ProcessPoolExecutor(2) as pool:
        coordinator = cluster.start_coordinator()
        for name in ("w1", "w2"):
            cluster.start_worker(name)
        cluster.wait_for_workers(2)
        with client_of(cluster) as client, Executor(client) as ours:
            systems: list[tuple[str, AnyExecutor, int]] = [
                ("districomp", ours, given.calls),
                ("ProcessPoolExecutor", pool, given.pool_calls),
            ]
            kinds: list[tuple[str, Callable[[AnyExecutor, int], float]]] = [("map", map_rate), ("submit", submit_rate)]
            for _, executor, _ in systems:
                map_rate(executor, 1000)
            used = cpu_s(coordinator.pid)
            for round_ in range(given.rounds):
                for name, executor, calls in systems[:: -1 if round_ % 2 else 1]:
                    for kind, measure in kinds:
                        rates.setdefault(f"{name}, {kind}", []).append(measure(executor, calls))
            used = cpu_s(coordinator.pid) - used
            times = {name: round_trips_ms(executor, given.latency) for name, executor, _ in systems}
    print(f"{heading()}\n\n| what | calls/s |\n|---|---|")
    for what, values in rates.items():
        print(f"| {what} | {summary(values)} |")
    pairs = zip(rates["districomp, map"], rates["ProcessPoolExecutor, map"], strict=True)
    print(f"| `map`, of the pool's in the same round | {summary([mine / pools for mine, pools in pairs], 1)} x |")
    print(f"| the coordinator's processor time | {1e6 * used / (2 * given.rounds * given.calls):.1f} us a call |")
    for name, took in times.items():
        print(f"| {name}, one call, median / p99 | {statistics.median(took):.2f} / {percentile(took, 0.99):.2f} ms |")
    if given.json:
        given.json.write_text(
            json.dumps({"machine": heading(), "calls_per_s": rates, "round_trip_ms": times}, indent=1)
        )


if __name__ == "__main__":
    main()
