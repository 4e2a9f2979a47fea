"""`python -m bench.core`: how many tasks a second the coordinator's pure core takes through lease and result.

One process, no I/O, no codec: submissions of numbered tasks, workers that report all that they hold,
batch by batch. What the core alone costs is the ceiling of everything built on it.
"""

import argparse
import statistics
import time

from dcoord.core.core import Core, Settings
from dcoord.core.effects import Send
from dcoord.core.events import DefinitionsChanged, Received
from dcoord.core.records import Restored
from dcoord.core.rights import Principal
from districomp.messages import PROTOCOL_VERSION, Assign, HelloClient, HelloWorker, Inventory, Reports, Submit
from districomp.model import Machine
from districomp.taskdef import Definition, with_digest


def run(tasks: int, workers: int, slots: int) -> float:
    """Tasks per second for one job of `tasks` tasks on `workers` workers."""
    now = 1_000_000.0
    core = Core(Settings("bench", "bench", insecure=True), Restored(1, "bench", {}, [], [], 0), now)
    definition = with_digest(Definition("noop", "", "", "stream", ["cat"]))
    core.handle_batch([DefinitionsChanged({"noop": definition})], now)
    for peer in range(1, workers + 1):
        hello = HelloWorker(PROTOCOL_VERSION, "", f"w{peer}", f"w{peer}", slots, Machine(), peer)
        greeting = Received(peer, hello, now, principal=Principal("worker", identity=f"w{peer}"))
        core.handle_batch([greeting, Received(peer, Inventory(0, [], [], [], [], True), now)], now)
    client = HelloClient(PROTOCOL_VERSION, "bench")
    core.handle_batch([Received(9999, client, now, principal=Principal("admin", user="bench"))], now)
    submit = Submit(1, "", "noop", {}, numbers=(0, 1), count=tasks)
    start = time.perf_counter()
    effects = core.handle_batch([Received(9999, submit, now)], now) + core.tick(now)
    serial = 0
    while not core.jobs[1].is_ended:
        now += 0.001
        batch = []
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Assign):
                assign = effect.message
                serial += 1
                count = len(assign.indexes)
                leases = list(range(assign.lease, assign.lease + count))
                report = Reports(serial, assign.job, leases, assign.indexes)
                report.started, report.ended = [now - 0.00002] * count, [now] * count
                report.results = [b"x"] * count
                batch.append(Received(effect.peer, report, now))
        effects = core.handle_batch(batch, now) + core.tick(now)
    seconds = time.perf_counter() - start
    core.check()
    return tasks / seconds


def main() -> None:
    """Print one line a shape: the median of the runs, and their range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    for workers, slots in ((2, 1), (2, 8), (100, 4)):
        rates = [run(arguments.tasks, workers, slots) for _ in range(arguments.runs)]
        print(
            f"{workers:4} workers x {slots} slots: {statistics.median(rates):10,.0f} tasks/s [{min(rates):,.0f} - {max(rates):,.0f}]"
        )


if __name__ == "__main__":
    main()
