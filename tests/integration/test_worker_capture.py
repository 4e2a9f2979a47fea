"""Processes whose output comes with their end, and slots in which one follows another without the worker's doing."""

import os
import resource
import signal
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dworker.runners.lines import Lines
from dworker.runners.spawn import Exit, Lost, NotStarted, PlainSpawner, Returned, Said, Spawner, SpawnServer
from tests.integration.spawnlab import Starter, code, until, with_starter
from tests.integration.workerlab import children, is_alive

TRIES = 100
OPEN_FILES = 300
"""Room for the pipes of as many as the server may hold, and for what it has open itself."""
LARGE = "fcntl(STDOUT, 1031, 300000); syswrite(STDOUT, 'x' x 200000)"
"""Makes its pipe larger (F_SETPIPE_SZ) and fills it at once."""


def capturing(test: Callable[[Starter], Coroutine[Any, Any, None]], kind: Any = SpawnServer) -> None:
    async def body(starter: Starter) -> None:
        starter.spawner._on_last = starter.on_last  # type: ignore[attr-defined]
        await test(starter)

    with_starter(kind, body)


async def heard_at_its_end(starter: Starter, argv: list[str], data: bytes = b"") -> tuple[Exit, Said]:
    """Of a process that is over before it counts as one that lasts: on a busy machine not each is, and another is tried."""
    for _ in range(TRIES):
        key = len(starter.ends) + 1
        starter.capture(key, argv, data)
        (ending,) = await starter.ended(key)
        assert isinstance(ending, Exit)
        if ending.said is not None:
            return ending, ending.said
    raise AssertionError(f"none of {TRIES} was heard at its end")


def test_what_a_short_process_says_comes_with_its_end() -> None:
    async def test(starter: Starter) -> None:
        before = time.monotonic()
        complains = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        for argv, data, output, errors, exit_code in (
            (["cat"], b"data" * 1000, b"data" * 1000, b"", 0),
            (complains, b"", b"out\n", b"err\n", 3),
            (["true"], b"", b"", b"", 0),
        ):
            ending, said = await heard_at_its_end(starter, argv, data)
            assert (said.out, said.err, code(ending)) == (output, errors, exit_code)
            assert before <= said.started <= said.ended <= time.monotonic()

    capturing(test)


@pytest.mark.parametrize("kind", [SpawnServer, PlainSpawner])
def test_the_pipes_of_a_process_that_lasts_come_before_its_end(kind: Callable[..., Spawner]) -> None:
    async def test(starter: Starter) -> None:
        starter.capture(1, ["sh", "-c", "echo early; read line; echo $line; sleep 0.2; echo late"], b"in\n")
        await until(lambda: 1 in starter.lasting)
        assert 1 not in starter.ends
        (ending,) = await starter.ended(1)
        assert isinstance(ending, Exit)
        assert ending.said is None
        assert starter.output(1) == b"early\nin\nlate\n"

    capturing(test, kind)


def test_what_a_pipe_was_made_larger_for_is_all_there() -> None:
    async def test(starter: Starter) -> None:
        starter.capture(0, ["true"])
        await starter.ended(0)
        # It has to have ended before it counts as one that lasts, which on a busy machine it may not: then another is tried.
        for key in range(1, TRIES):
            starter.capture(key, ["perl", "-e", LARGE])
            (ending,) = await starter.ended(key)
            assert isinstance(ending, Exit)
            assert ending.said is None, "more than one pipe takes by itself is the worker's to read"
            read = starter.lasting[key].out
            assert read + starter.output(key) == b"x" * 200_000
            if read:
                return
        raise AssertionError(f"none of {TRIES} had ended before")

    capturing(test)


def test_one_follows_another_in_a_slot() -> None:
    async def test(starter: Starter) -> None:
        times: list[tuple[float, float]] = []
        # On a busy machine one of them may last, and what waits behind it comes back: then five more are tried.
        for first in range(1, 5 * TRIES, 5):
            for key in range(first, first + 5):
                starter.capture(key, ["sh", "-c", "exit 0"], slot=0)
            endings = await starter.ended(*range(first, first + 5))
            said = [ending.said for ending in endings if isinstance(ending, Exit) and ending.said is not None]
            times = [(one.started, one.ended) for one in said]
            assert times == sorted(times)
            assert all(ended <= started for (_, ended), (started, _) in pairwise(times))
            if len(times) > 1:
                break
        assert len(times) > 1, "none has followed another"

    capturing(test)


def test_what_follows_one_that_lasts_is_returned_unstarted() -> None:
    async def test(starter: Starter) -> None:
        starter.capture(1, ["sleep", "1000"], slot=0)
        starter.capture(2, ["sleep", "1000"], slot=1)
        for key in (3, 4):
            starter.capture(key, ["touch", "/nowhere/at/all"], slot=0)
        assert await starter.ended(3, 4) == [Returned(), Returned()]
        starter.capture(5, ["true"], slot=0)
        assert await starter.ended(5) == [Returned()], "it still lasts"
        assert set(starter.lasting) >= {1}
        for key in (1, 2):
            starter.spawner.kill(key, signal.SIGKILL)
        await starter.ended(1, 2)
        starter.capture(6, ["true"], slot=0)
        (ending,) = await starter.ended(6)
        assert code(ending) == 0

    capturing(test)


def test_one_that_cannot_be_started_does_not_hold_its_slot_up() -> None:
    async def test(starter: Starter) -> None:
        starter.capture(1, ["no-such-program"], slot=0)
        starter.capture(2, ["true"], slot=0)
        starter.capture(3, ["no-such-program"], slot=0)
        starter.capture(4, ["true"], slot=0)
        one, _, three, _ = await starter.ended(1, 2, 3, 4)
        assert isinstance(one, NotStarted)
        assert isinstance(three, NotStarted | Returned)
        starter.capture(5, ["true"], slot=0)
        (five,) = await starter.ended(5)
        assert code(five) == 0

    capturing(test)


def test_one_that_waits_can_be_called_off() -> None:
    async def test(starter: Starter) -> None:
        starter.capture(1, ["sleep", "1000"], slot=0)
        starter.capture(2, ["sleep", "1000"], slot=0)
        starter.spawner.kill(2, signal.SIGTERM)
        assert await starter.ended(2) == [Returned()]
        starter.spawner.kill(1, signal.SIGTERM)
        (ending,) = await starter.ended(1)
        assert code(ending) == -signal.SIGTERM

    capturing(test)


def test_whoever_a_short_process_leaves_behind_is_dead_and_not_waited_for() -> None:
    async def test(starter: Starter) -> None:
        starter.capture(1, ["sh", "-c", "setsid sleep 1000 & echo $!"], slot=0)
        starter.capture(2, ["true"], slot=0)
        (ending,) = await starter.ended(1)
        assert isinstance(ending, Exit)
        left = int(ending.said.out if ending.said is not None else os.read(starter.outputs[1], 100))
        await until(lambda: not is_alive(left))

    capturing(test)


def test_the_children_of_who_was_left_behind_die_though_the_next_runs(tmp_path: Path) -> None:
    """They become the server's when their parent dies, and by then the next one has begun."""
    leave = "(setsid sh -c 'sleep 1000 & echo $!; wait' >../FILE &); while [ ! -s ../FILE ]; do :; done"

    async def test(starter: Starter) -> None:
        for key in range(0, 20, 2):
            folders = tmp_path / f"a{key}", tmp_path / f"b{key}"
            for folder in folders:
                folder.mkdir()
            file = tmp_path / f"pid{key}"
            starter.capture(key, ["sh", "-c", leave.replace("FILE", file.name)], slot=0, folder=str(folders[0]))
            starter.capture(key + 1, ["sleep", "1000"], slot=0, folder=str(folders[1]))
            await starter.ended(key)
            left = int(file.read_text())
            # On a busy machine the next one may have come back, and nothing runs.
            await until(lambda: not is_alive(left))  # noqa: B023 -- awaited here
            starter.spawner.kill(key + 1, signal.SIGKILL)
            await starter.ended(key + 1)

    capturing(test)


def test_a_server_that_dies_loses_what_waits_too() -> None:
    async def test(starter: Starter) -> None:
        server = starter.spawner
        assert isinstance(server, SpawnServer)
        starter.capture(1, ["sleep", "1000"], slot=0)
        starter.capture(2, ["sleep", "1000"], slot=1)
        await until(lambda: len(children(server.pid)) == 2)
        os.kill(server.pid, signal.SIGKILL)
        assert [type(ending) for ending in await starter.ended(1, 2)] == [Lost, Lost]

    capturing(test)


def test_hundreds_that_last_at_once() -> None:
    """More than the server may hold open: it gives them away as they come."""

    async def test(starter: Starter) -> None:
        server = starter.spawner
        assert isinstance(server, SpawnServer)
        starter.capture(0, ["true"])
        await starter.ended(0)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        for key in range(1, 400):
            starter.capture(key, ["sleep", "0.3"])
        await starter.ended(*range(400))
        assert {type(ending) for ending in starter.ends.values()} == {Exit}

    capturing(test)


def test_without_descriptors_a_process_is_not_started_and_no_other_is_lost() -> None:
    """Whichever of them is the one that is missing."""

    async def test(starter: Starter) -> None:
        server = starter.spawner
        assert isinstance(server, SpawnServer)
        starter.capture(0, ["sleep", "1000"])
        await until(lambda: 0 in starter.lasting)
        pid = server.pid
        highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 -- they are numbers, not files
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        limits = range(3, highest + 8)
        for limit in limits:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
            starter.capture(limit, ["true"], b"data")
            await starter.ended(limit)
        assert isinstance(starter.ends[limits[0]], NotStarted)
        assert isinstance(starter.ends[limits[-1]], Exit)
        assert server.pid == pid
        starter.spawner.kill(0, signal.SIGKILL)
        await starter.ended(0)

    capturing(test)


def test_lines_start_one_for_each_that_ends() -> None:
    lines = Lines()
    lines.failed(0)
    lines.begun(1, 0)
    lines.add(0, (2,))
    lines.add(0, (3,))
    lines.add(0, (4,))
    assert lines.following() is None, "the slot is taken, though something failed in it before"
    assert not lines.ended(1), "enough waits there"
    assert lines.following() == (2,)
    assert lines.following() is None
    lines.begun(2, 0)
    assert lines.withdraw(3) == (3,)
    assert lines.withdraw(3) is None
    assert lines.waiting_for(2) == [(4,)]
    assert lines.ended(2)
    assert lines.following() is None
    assert lines.ended(99), "one of no slot"
