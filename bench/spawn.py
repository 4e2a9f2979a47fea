"""How many processes a second: the spawn server's ways against `subprocess`, against the bare system call, and against C.

`python -m bench.spawn [--count N] [--at-once N]`. Each starts /bin/true with both its outputs in
pipes, so many at once, and waits for it; interleaved, the median of the rounds counts. "passed": the descriptors go
to the spawn server; "captured": it makes the pipes and reads them; "in a line": a slot has several requests in hand. Beside
each rate the processor time of a process, its own and everybody's who has to do with it.
"""

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import limit
from bench.machine import summary
from dworker.hold import AHEAD_MAX
from dworker.runners.spawn import Ending, Lasts, PlainSpawner, Request, Returned, Spawner, SpawnServer

PROGRAM = "/bin/true"


async def by_spawner(kind: type[SpawnServer] | type[PlainSpawner], count: int, at_once: int) -> float:
    """Processes a second through one of the worker's spawners."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    outputs: dict[int, tuple[int, int]] = {}
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    ended = 0

    def start(key: int) -> None:
        out, out_theirs = os.pipe2(os.O_CLOEXEC)
        err, err_theirs = os.pipe2(os.O_CLOEXEC)
        outputs[key] = out, err
        fds = (os.dup(null), out_theirs, err_theirs)
        spawner.spawn(key, Request("/", PROGRAM, ["true"], {"PATH": "/bin"}, fds))

    def on_end(key: int, ending: Ending) -> None:
        nonlocal ended
        ended += 1
        for reading in outputs.pop(key):
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


async def captured(count: int, at_once: int, in_hand: int) -> float:
    """Processes a second through the spawn server, captured, so many of each slot in its hands."""
    done = asyncio.get_running_loop().create_future()
    ended = 0
    waiting: list[tuple[int, int]] = []  # key, slot
    slots: dict[int, int] = {}

    def start(key: int, slot: int) -> None:
        slots[key] = slot
        request = Request("/", PROGRAM, ["true"], {"PATH": "/bin"}, (), captured=b"", slot=slot)
        spawner.spawn(key, request)

    def on_end(key: int, ending: Ending) -> None:
        nonlocal ended
        slot = slots.pop(key)
        if isinstance(ending, Returned):
            waiting.append((key, slot))
            return
        ended += 1
        if ended + at_once * in_hand <= count:
            start(ended + at_once * in_hand, slot)
        elif ended == count:
            done.set_result(None)
        while waiting:
            start(*waiting.pop())

    def on_last(key: int, lasts: Lasts) -> None:
        os.close(lasts.out_fd)
        os.close(lasts.err_fd)

    spawner = SpawnServer(on_end, None, on_last)
    begun = time.perf_counter()
    for key in range(1, at_once * in_hand + 1):
        start(key, key % at_once)
    await done
    rate = count / (time.perf_counter() - begun)
    await spawner.close()
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
    ways: dict[str, Callable[[int, int], float]] = {
        "posix_spawn, bare": by_posix_spawn,
        "spawn server, captured, in a line": lambda count, at_once: asyncio.run(captured(count, at_once, AHEAD_MAX)),
        "spawn server, captured": lambda count, at_once: asyncio.run(captured(count, at_once, 1)),
        "spawn server, passed": lambda count, at_once: asyncio.run(by_spawner(SpawnServer, count, at_once)),
        "subprocess.Popen in the loop": lambda count, at_once: asyncio.run(by_spawner(PlainSpawner, count, at_once)),
        "subprocess.run in threads": by_run,
    }
    with tempfile.TemporaryDirectory() as folder:
        if limit.missing():
            print(f"without the machine's limit: {limit.missing()}")
        else:
            program = limit.compiled(Path(folder))
            ways["C, vfork and exec"] = lambda count, at_once: limit.run(program, PROGRAM, count, at_once)
        measure(ways, given.count, given.at_once, given.rounds)


def measure(ways: dict[str, Callable[[int, int], float]], count: int, at_once: int, rounds: int) -> None:
    """Measure them in turn, and print."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    used: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before = sum(os.times()[:4])
            rates[name].append(way(count, at_once))
            used[name].append((sum(os.times()[:4]) - before) / count * 1e6)
    for name, values in rates.items():
        print(f"{name:34} {summary(values)} /s, {summary(used[name])} us of a processor each")


if __name__ == "__main__":
    main()
