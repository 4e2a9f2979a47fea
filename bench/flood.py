"""`python -m bench.flood`: what strangers who flood a coordinator cost those who work with it.

A coordinator with its web server, and a worker of one slot, all real processes with TLS on loopback; the floods
(`bench.floods`) come from the same address. Measured during each: a no-op task from submission to result; the call of a
fresh client (new connection, handshake with its certificate, `status`); a fresh connection to the statistics port.
Memory is resident, in MB (10^6 bytes), the highest that was seen.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bench.client import client_of
from bench.floods import FLOODS, Attacker, port_of
from bench.machine import cpu_s, heading, rss_mb
from bench.throughput import define
from demo.cluster import Cluster
from districomp.client import Client

SECONDS_MAX: Final = 60.0


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p99:.1f}"


class Figures(msgspec.Struct):
    """What was measured during one flood; the processor in percent of one."""

    flood: str
    task: Spread
    call: Spread
    page: Spread
    dcoord_mb: float
    web_mb: float
    dcoord_cpu: float
    done: dict[str, int]


class Bystanders:
    """Those who work while others flood."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._client = client_of(cluster)
        host, port = cluster.endpoint()["control"]
        self._where = f"{host}:{port}"

    def close(self) -> None:
        """No more calls."""
        self._client.close()

    def task(self) -> None:
        """A no-op from submission to result, on a connection that is there."""
        (result,) = self._client.submit("noop", data=b"1").results()
        assert result

    def call(self) -> None:
        """A question of somebody who was not connected."""
        with Client(self._where) as client:
            assert client.status().workers == 1

    def page(self) -> None:
        """A fresh connection to the plain port."""
        connection = http.client.HTTPConnection("127.0.0.1", port_of(self._cluster.endpoint()["web"]), timeout=30.0)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()

    def measure(self, flood: str, samples: int) -> Figures:
        """Each of the three in turn, so many times."""
        coordinator, web = self._cluster.coordinator, self._cluster.endpoint()["web_pid"]
        assert coordinator is not None
        times: dict[str, list[float]] = {"task": [], "call": [], "page": []}
        memory: list[tuple[float, float]] = []
        used, start = cpu_s(coordinator.pid), time.monotonic()
        for number in range(samples):
            for name, act in (("task", self.task), ("call", self.call), ("page", self.page)):
                times[name].append(_ms(act))
            if number % 10 == 0:
                memory.append((rss_mb(coordinator.pid), rss_mb(web)))
        cpu = 100 * (cpu_s(coordinator.pid) - used) / (time.monotonic() - start)
        task, call, page = (Spread(statistics.median(each), _p99(each)) for each in times.values())
        dcoord_mb, web_mb = (max(column) for column in zip(*memory, strict=True))
        return Figures(flood, task, call, page, dcoord_mb, web_mb, cpu, {})


def _ms(act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start)


def _p99(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]


def row(figures: Figures) -> str:
    """A line of the table."""
    spread = " | ".join(map(str, (figures.task, figures.call, figures.page)))
    done = ", ".join(f"{count:,} {what}" for what, count in figures.done.items())
    return f"| {figures.flood} ({done or '-'}) | {spread} | {figures.dcoord_mb:.0f} / {figures.web_mb:.0f} | {figures.dcoord_cpu:.0f} % |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(FLOODS), metavar="KIND", help=", ".join(FLOODS))
    parser.add_argument("--samples", type=int, default=200, help="of each figure, during each flood")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        define(cluster)
        cluster.start_coordinator()
        cluster.start_worker("w1")
        cluster.wait_for_workers(1)
        print(heading())
        print()
        print("| flood | task p50 / p99, ms | fresh call | fresh page | dcoord / web, MB | dcoord's processor |")
        print("|---|---|---|---|---|---|")
        bystanders = Bystanders(cluster)
        for kind in ("none", *arguments.kinds, "none, afterwards"):
            if kind in FLOODS:
                with Attacker(cluster, kind, SECONDS_MAX) as attacker:
                    figures = bystanders.measure(kind, arguments.samples)
                    figures.done = attacker.end()
            else:
                figures = bystanders.measure(kind, arguments.samples)
            measured.append(figures)
            print(row(figures), flush=True)
        bystanders.close()
    if arguments.json is not None:
        document = {"machine": heading(), "floods": msgspec.to_builtins(measured)}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
