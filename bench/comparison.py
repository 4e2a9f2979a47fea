"""`python -m bench peers`: districomp and other systems in turn, on this machine, with its spawn limit beside them.

Each round starts every system anew, one after the other, with a coordinator, two one-slot workers and a client on
loopback, and measures it; every second round goes the other way round. What ran in one round is compared, not what ran
today and what ran yesterday. Writes bench/results/peers.json and draws docs/benchmarks.md from it.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import draw, tables
from bench.machine import heading, rss_mb
from bench.peers.base import Peer, PeerError, Place, Running
from bench.peers.installation import Installation, InstallError
from bench.peers.roster import PEERS
from bench.processes import Processes, all_ended, scratch_folder
from bench.results import FOLDER, Comparison, System, figure, percentile, save
from demo.cluster import ClusterError

DEFAULT_FOLDER: Final = Path.home() / ".cache" / "districomp-peers"
QUICK: Final = 10
"""`--quick` divides the tasks by this."""
ATTEMPTS: Final = 2
SETTLED_S: Final = 0.6
SETTLE_MAX_S: Final = 10.0
Failure = (PeerError, ClusterError, OSError)
"""How a system fails; whatever else goes wrong is our own bug."""

Sample = tuple[str, int, float]
"""Figure, of how many tasks, value."""


def main(argv: Sequence[str]) -> int:
    """0; 1 if something could not be installed or nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench peers", description=__doc__)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where the systems are installed")
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="install them there, and do nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="names, with commas between", metavar="NAMES")
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the tasks, nothing written")
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of peers.json")
    given = parser.parse_args(argv)
    names = given.only.split(",") if given.only else [peer.name for peer in PEERS]
    if unknown := [name for name in names if name not in [peer.name for peer in PEERS]]:
        parser.error(f"there is no {', '.join(unknown)}; there are: {', '.join(peer.name for peer in PEERS)}")
    peers = [peer for peer in PEERS if peer.name in names]
    if given.install:
        return install(peers, Installation(given.install.resolve()))
    there = Installation(given.folder.resolve())
    with all_ended():
        result = measure(peers, there, 1 if given.quick else given.rounds, QUICK if given.quick else 1)
    if not given.quick:
        print(f"written: {save(result, given.results)}")
        if given.results == FOLDER:
            draw.write()
    else:
        print(tables.comparison(result))
    return 0 if any(system.figures for system in result.systems) else 1


def install(peers: Sequence[Peer], there: Installation) -> int:
    """One after the other; what cannot be installed is said, and the others are."""
    there.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for peer in peers:
        try:
            peer.install(there)
        except InstallError as error:
            print(f"{peer.name}: {error}")
            failed = 1
        else:
            print(f"{peer.name}: {peer.missing(there) or peer.version(there) or 'ready'}")
    return failed


def measure(peers: Sequence[Peer], there: Installation, rounds: int, divisor: int) -> Comparison:
    """All rounds, then the memory of queued tasks, which drifts less. One that fails twice in a row is not asked again."""
    systems = {peer.name: _system(peer, there) for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            _attempt(peer, there, systems[peer.name], divisor, number)
    for peer in peers:
        if "queue" in peer.tasks:
            _attempt(peer, there, systems[peer.name], divisor, None)
    return Comparison(heading(), rounds, list(systems.values()))


def _system(peer: Peer, there: Installation) -> System:
    missing = peer.missing(there)
    if missing:
        print(f"{peer.name}: {missing}; `python -m bench peers --install {there.folder}`")
    return System(peer.name, peer.title, "" if missing else peer.version(there), peer.durable, peer.note, missing)


def _attempt(peer: Peer, there: Installation, system: System, divisor: int, number: int | None) -> None:
    """One round (or with None the memory) of one system, unless it is missing."""
    if system.missing:
        return
    what = "memory" if number is None else f"round {number + 1}"
    measure_one = measure_memory if number is None else measure_round
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        try:
            samples = measure_one(peer, there, divisor)
        except Failure as error:
            reason = str(error).replace(str(there.folder), "FOLDER")
            print(f"{what}, {peer.name}: {reason}", flush=True)
            continue
        for sample in samples:
            system.add(*sample)
        latest = [f"{name} {figure(value)}" for name, _, value in samples]
        print(f"{what}, {peer.name}, {time.perf_counter() - start:.1f} s: {', '.join(latest)}", flush=True)
        return
    system.missing = reason


@contextmanager
def _place(there: Installation, workers: int) -> Iterator[Place]:
    """Everything in it is ended and gone afterwards."""
    with scratch_folder() as folder, Place(there, Processes(folder), workers) as place:
        yield place


def measure_round(peer: Peer, there: Installation, divisor: int) -> list[Sample]:
    """Start it, take each measure once. PeerError if it fails."""
    samples: list[Sample] = []
    with _place(there, workers=2) as place:
        start = time.perf_counter()
        driver = peer.start(place).driver
        samples.append(("ready_s", 1, time.perf_counter() - start))
        for what in ("noop", "true", "map"):
            if what in peer.tasks:
                tasks = max(1, peer.tasks[what] // divisor)
                samples.append((what, tasks, tasks / driver.ask(what, tasks)))
        if "latency" in peer.tasks:
            tasks = max(1, peer.tasks["latency"] // divisor)
            times = driver.ask("latency", tasks)
            samples.append(("latency_median", tasks, statistics.median(times)))
            samples.append(("latency_p99", tasks, percentile(times, 0.99)))
    return samples


def measure_memory(peer: Peer, there: Installation, divisor: int) -> list[Sample]:
    """What the processes that keep the queue grow by, a task, while no worker is there. PeerError if it fails."""
    with _place(there, workers=0) as place:
        running = peer.start(place)
        before = _settled_mb(running)
        tasks = max(1, peer.tasks["queue"] // divisor)
        running.driver.ask("queue", tasks)
        grown = 1e6 * (_settled_mb(running) - before)
    return [("queued_bytes", tasks, max(0.0, grown / tasks))]


def _settled_mb(running: Running) -> float:
    """Memory once it does not grow any more: some take tasks in after they have acknowledged them."""
    deadline = time.monotonic() + SETTLE_MAX_S
    before = -1.0
    while (now := sum(rss_mb(pid) for pid in running.keepers)) > before and time.monotonic() < deadline:
        before = now
        time.sleep(SETTLED_S)
    return now
