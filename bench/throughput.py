"""`python -m bench.throughput`: small tasks through the whole system, results at the client.

A coordinator (journal with synchronous=FULL), two one-slot workers found by mDNS and one client using the
library, all on loopback, by TLS unless `--insecure` (side by side: `python -m bench.trust`). `noop`: a `stream` program that answers each line at once. `true`: /bin/true, a
process each, its output captured; before each run of it two programs in C vfork and exec as fast as the machine lets them. `latency`: one no-op at a time, from submission to result.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench import limit
from bench.client import client_of
from bench.machine import cpu_s, heading, rss_mb, summary
from bench.results import percentile
from demo.cluster import Cluster
from districomp.client import Client

NOOP_YAML = "version: 1\nstream: [cat]\nretries: {max: 0}\n"
TRUE_YAML = "version: 1\ncommand: [/bin/true]\nretries: {max: 0}\n"


def define(cluster: Cluster) -> None:
    """Give it the definitions that are measured, before it starts."""
    for name, text in (("noop", NOOP_YAML), ("true", TRUE_YAML)):
        (cluster.config / "tasks.d" / f"{name}.yaml").write_text(text)


def throughput(client: Client, definition: str, tasks: int) -> float:
    """Tasks a second from submission until every result is here."""
    start = time.perf_counter()
    job = client.submit(definition, range=range(1, tasks + 1))
    count = sum(1 for _ in job.results())
    seconds = time.perf_counter() - start
    assert count == tasks, f"{count} results of {tasks} tasks"
    return tasks / seconds


def processes(client: Client, tasks: int, runs: int, folder: Path) -> tuple[list[float], list[float]]:
    """Tasks a second of `true`, and the machine's limit just before each run; no limits without a compiler."""
    program = None if limit.missing() else limit.compiled(folder)
    rates, limits = [], []
    for _ in range(runs):
        if program is not None:
            limits.append(limit.run(program, "/bin/true", tasks, 2))
        rates.append(throughput(client, "true", tasks))
    return rates, limits


def print_rates(client: Client, coordinator: int, sizes: tuple[int, int], runs: int, folder: Path) -> None:
    """The rows of no-ops and processes; `sizes`: tasks of each."""
    for definition, tasks in zip(("noop", "true"), sizes, strict=True):
        before = cpu_s(coordinator)
        limits: list[float] = []
        if definition == "true":
            rates, limits = processes(client, tasks, runs, folder)
        else:
            rates = [throughput(client, definition, tasks) for _ in range(runs)]
        used = cpu_s(coordinator) - before
        print(f"| {definition}, {tasks:,} tasks | {summary(rates)} tasks/s |")
        if limits:
            print(f"| - two C programs, vfork + exec, in the same minute | {summary(limits)} /s |")
            print(f"| - of that limit | {summary([a / b for a, b in zip(rates, limits, strict=True)], 2)} |")
        elif definition == "true":
            print(f"| - the machine's limit | {limit.missing()} |")
        print(f"| - the coordinator's processor time | {1e6 * used / tasks / runs:.1f} us a task |")


def latencies_ms(client: Client, runs: int) -> list[float]:
    """Round trips of one no-op."""
    times = []
    for number in range(runs):
        start = time.perf_counter()
        job = client.submit("noop", data=b"%d" % number)
        (result,) = list(job.results())
        times.append(1000 * (time.perf_counter() - start))
        assert result
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noop", type=int, default=100_000)
    parser.add_argument("--true", type=int, default=5_000)
    parser.add_argument("--latency", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--insecure", action="store_true", help="plain TCP")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), insecure=arguments.insecure) as cluster:
        define(cluster)
        coordinator = cluster.start_coordinator()
        for name in ("w1", "w2"):
            cluster.start_worker(name)
        cluster.wait_for_workers(2)
        print(heading())
        print()
        print("| what | measured |")
        print("|---|---|")
        with client_of(cluster, insecure=arguments.insecure) as client:
            throughput(client, "noop", 1000)
            print_rates(client, coordinator.pid, (arguments.noop, arguments.true), arguments.runs, Path(folder))
            times = latencies_ms(client, arguments.latency)
            print(f"| one no-op, median / p99 | {statistics.median(times):.2f} / {percentile(times, 0.99):.2f} ms |")
            print(f"| the coordinator's memory afterwards | {rss_mb(coordinator.pid):.0f} MB |")


if __name__ == "__main__":
    main()
