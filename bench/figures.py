"""`python -m bench.figures`: what the daemons cost when idle, and how long starting and asking take.

A coordinator and a worker as real processes on loopback. Memory is resident, in MB (10^6 bytes), of each
daemon alone and with its children; processor use is over a quiet stretch.
"""

import argparse
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.machine import cpu_s, descendants, heading, rss_mb, summary
from demo.cluster import Cluster, Process, script, wait_until

SETTLE_S = 3.0


def idle(cluster: Cluster, seconds: float) -> list[str]:
    """Rows of the table of idle costs."""
    coordinator, worker = cluster.coordinator, cluster.workers["w1"]
    assert coordinator is not None
    pids = {"dcoord": coordinator.pid, "dcoord-web": cluster.endpoint()["web_pid"], "dworker": worker.pid}
    time.sleep(SETTLE_S)
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    rows = []
    for name, pid in pids.items():
        share = 100 * (cpu_s(pid) - before[name]) / seconds
        others = [other for other in descendants(pid)[1:] if other not in pids.values()]
        with_children = rss_mb(pid) + sum(rss_mb(other) for other in others)
        rows.append(
            f"| idle {name} | {rss_mb(pid):.1f} MB (with {len(others)} helpers {with_children:.1f}) | {share:.2f} % CPU |"
        )
    return rows


def status_ms(cluster: Cluster, runs: int) -> list[float]:
    """Whole-process times of `dctl status`."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([script("dctl"), "status"], env=cluster.environment, stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.perf_counter() - start))
    return times


def join_s(cluster: Cluster, runs: int) -> list[float]:
    """From starting a worker's process to the coordinator's knowing it, found by mDNS on loopback."""
    times = []
    coordinator = cluster.coordinator
    assert coordinator is not None
    for run in range(runs):
        name = f"join-{run}"
        start = time.perf_counter()
        process = cluster.start_worker(name)
        wait_until(partial(_has_joined, coordinator, name), f"{name} to join")
        times.append(time.perf_counter() - start)
        process.stop()
    return times


def _has_joined(coordinator: Process, name: str) -> bool:
    return f"worker {name} joined" in coordinator.log_text()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of quiet, for the processor use")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--insecure", action="store_true", help="plain TCP instead of TLS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), insecure=arguments.insecure) as cluster:
        cluster.start_coordinator()
        cluster.start_worker("w1")
        cluster.wait_for_workers(1)
        print(heading())
        print()
        print("| figure | measured | |")
        print("|---|---|---|")
        for row in idle(cluster, arguments.seconds):
            print(row)
        print(f"| `dctl status`, whole process | {summary(status_ms(cluster, arguments.runs))} ms | |")
        print(f"| new worker's start to joined, by mDNS | {summary(join_s(cluster, arguments.runs), 2)} s | |")


if __name__ == "__main__":
    main()
