"""How many processes a second: the spawn server against `subprocess`, and against the bare system call.

`python -m bench.spawn [--count N] [--at-once N]`. Each starts /bin/true with its standard output in a
pipe, so many at once, and waits for it; interleaved, the median of the rounds counts.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from dworker.runners.spawn import Ending, PlainSpawner, Request, Spawner, SpawnServer

PROGRAM = "/bin/true"


async def by_spawner(kind: type[SpawnServer] | type[PlainSpawner], count: int, at_once: int) -> float:
    """Processes a second through one of the worker's spawners."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    outputs: dict[int, int] = {}
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    ended = 0

    def start(key: int) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        outputs[key] = reading
        fds = (os.dup(null), writing, os.dup(null))
        spawner.spawn(key, Request("/", PROGRAM, ["true"], {"PATH": "/bin"}, fds))

    def on_end(key: int, ending: Ending) -> None:
        nonlocal ended
        ended += 1
        reading = outputs.pop(key)
        os.read(reading, 65536)
        os.close(reading)
        if ended + at_once <= count:
            start(ended + at_once)
        elif ended == count:
            done.set_result(None)

    spawner: Spawner = kind(on_end)
    begun = time.perf_counter()
    for key in range(1, at_once + 1):
        start(key)
    await done
    rate = count / (time.perf_counter() - begun)
    await spawner.close()
    os.close(null)
    return rate


def by_run(count: int, at_once: int) -> float:
    """Processes a second through `subprocess.run` in threads."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda _: subprocess.run([PROGRAM], capture_output=True, check=True), range(count)):
            pass
    return count / (time.perf_counter() - begun)


def by_posix_spawn(count: int, at_once: int) -> float:
    """Processes a second by the bare call, no pipe, no folder: the limit of one Python process."""
    begun = time.perf_counter()
    running = 0
    for _ in range(count):
        os.posix_spawn(PROGRAM, ["true"], {})
        running += 1
        if running == at_once:
            os.wait()
            running -= 1
    while running:
        os.wait()
        running -= 1
    return count / (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ways = {
        "posix_spawn, bare": by_posix_spawn,
        "spawn server": lambda count, at_once: asyncio.run(by_spawner(SpawnServer, count, at_once)),
        "subprocess.Popen in the loop": lambda count, at_once: asyncio.run(by_spawner(PlainSpawner, count, at_once)),
        "subprocess.run in threads": by_run,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, way in ways.items():
            rates[name].append(way(given.count, given.at_once))
    for name, values in rates.items():
        print(f"{name:30} {statistics.median(values):8.0f} /s   (of {', '.join(f'{value:.0f}' for value in values)})")


if __name__ == "__main__":
    main()
