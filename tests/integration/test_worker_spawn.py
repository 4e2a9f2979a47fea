"""Both ways to start processes: the spawn server, and plain subprocess where that cannot be."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dworker.runners import spawnd
from dworker.runners.spawn import Exit, Lost, NotStarted, PlainSpawner, SpawnServer
from tests.integration.spawnlab import PYTHON, Kind, Starter, code, until, with_starter
from tests.integration.workerlab import children, is_alive
from tests.patience import PATIENCE_S

KINDS: list[Any] = [pytest.param(SpawnServer, id="server"), pytest.param(PlainSpawner, id="plain")]


@pytest.mark.parametrize("kind", KINDS)
def test_starting_feeding_and_waiting(kind: Kind, tmp_path: Path) -> None:
    async def test(starter: Starter) -> None:
        starter.start(1, ["cat"], b"data")
        starter.start(2, ["sh", "-c", "pwd; echo $KEY; exit 7"], folder=str(tmp_path))
        one, two = await starter.ended(1, 2)
        assert (code(one), starter.output(1)) == (0, b"data")
        assert (code(two), starter.output(2)) == (7, f"{tmp_path}\n2\n".encode())
        assert isinstance(one, Exit)
        assert one.cpu_s is not None
        assert 0 <= one.cpu_s < 5
        assert one.memory_bytes is not None
        assert one.memory_bytes > 100_000

    with_starter(kind, test)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_started(kind: Kind) -> None:
    async def test(starter: Starter) -> None:
        starter.start(1, ["none"])
        starter.start(2, ["true"], folder="/no/such/folder")
        starter.start(3, ["true", "x" * 3_000_000])
        starter.start(4, ["true", "a\0b"])
        starter.start(5, ["echo", "fine"])
        ends = await starter.ended(1, 2, 3, 4, 5)
        codes = [end.errno for end in ends[:4] if isinstance(end, NotStarted)]
        assert codes[:3] == [errno.ENOENT, errno.ENOENT, errno.E2BIG]
        assert len(codes) == 4
        assert starter.output(5) == b"fine\n"

    with_starter(kind, test)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_reaches_the_whole_group_and_the_end_kills_what_is_left(kind: Kind) -> None:
    async def test(starter: Starter) -> None:
        starter.start(1, ["sh", "-c", "sleep 1000 & echo $!; wait"])
        reading = starter.outputs[1]
        child = int(await asyncio.to_thread(os.read, reading, 100))
        starter.spawner.kill(1, signal.SIGTERM)
        starter.spawner.kill(77, signal.SIGTERM)
        (ending,) = await starter.ended(1)
        assert code(ending) == -signal.SIGTERM
        starter.spawner.kill(1, signal.SIGTERM)
        starter.start(2, ["sh", "-c", "sleep 1000 & echo $!"])
        await starter.ended(2)
        left = [child, int(starter.output(2))]
        await until(lambda: not any(map(is_alive, left)))

    with_starter(kind, test)


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_at_once(kind: Kind) -> None:
    async def test(starter: Starter) -> None:
        for key in range(300):
            starter.start(key, ["echo", str(key), "x" * 3000])
        await starter.ended(*range(300))
        for key in range(300):
            assert starter.output(key).startswith(b"%d " % key)

    with_starter(kind, test)


def test_closing_kills_everything_sessions_of_their_own_included() -> None:
    async def body() -> None:
        starter = Starter(SpawnServer)
        starter.start(1, ["sh", "-c", "setsid sleep 1000 & echo $!; wait"])
        child = int(await asyncio.to_thread(os.read, starter.outputs[1], 100))
        await starter.close()
        assert not is_alive(child), "close waits for the server, and the server for all of them"
        assert not starter.ends

    asyncio.run(body())


LEAVE = """
import os, sys, time
here, there = os.pipe()
def leave(depth):
    if os.fork() == 0:
        os.setsid()
        if depth:
            leave(depth - 1)
        if sys.argv[1] == 'moved':
            os.chdir('/')
        print(os.getpid(), flush=True)
        os.write(there, b'x')
        time.sleep(1000)
leave(2)
for _ in range(3):
    os.read(here, 1)
"""
"""A process that leaves three others, each in a session of its own and the child of another."""


@pytest.mark.parametrize("how", ["plain", "moved"])
def test_what_leaves_the_session_dies_with_its_task_while_others_run(how: str, tmp_path: Path) -> None:
    async def test(starter: Starter) -> None:
        mine, other = tmp_path / "1", tmp_path / "12"
        for folder in (mine, other):
            folder.mkdir()
        # Beside it a task that has a child in a session of its own too, and does not wait for it.
        starter.start(1, ["sh", "-c", "(setsid sleep 1000 & echo $!); exec sleep 1000"], folder=str(other))
        bystander = int(await asyncio.to_thread(os.read, starter.outputs[1], 100))
        starter.start(2, [*PYTHON, LEAVE, how], folder=str(mine), program=PYTHON[0])
        await starter.ended(2)
        family = [int(word) for word in os.read(starter.outputs[2], 1000).split()]
        assert len(family) == 3
        await until(lambda: not any(map(is_alive, family)))
        assert is_alive(bystander)
        assert 1 not in starter.ends
        starter.spawner.kill(1, signal.SIGKILL)
        await starter.ended(1)
        await until(lambda: not is_alive(bystander))

    with_starter(SpawnServer, test)


def test_a_server_that_dies_is_replaced() -> None:
    async def test(starter: Starter) -> None:
        server = starter.spawner
        assert isinstance(server, SpawnServer)
        starter.start(1, ["sh", "-c", "setsid sleep 1000 & wait"])
        await until(lambda: children(server.pid) and children(children(server.pid)[0]))
        (task,) = children(server.pid)
        family = [task, *children(task)]
        first = server.pid
        os.kill(first, signal.SIGKILL)
        (ending,) = await starter.ended(1)
        assert isinstance(ending, Lost)
        assert server.pid != first
        assert not any(map(is_alive, family)), "what it had started is dead before anybody hears of it"
        starter.start(2, ["echo", "again"])
        await starter.ended(2)
        assert starter.output(2) == b"again\n"

    with_starter(SpawnServer, test)


def test_the_server_is_small() -> None:
    """Its size is the floor of every memory figure, so nothing may creep in."""

    async def test(starter: Starter) -> None:
        server = starter.spawner
        assert isinstance(server, SpawnServer)
        starter.start(1, ["true"])
        (ending,) = await starter.ended(1)
        assert isinstance(ending, Exit)
        assert ending.memory_bytes is not None
        assert ending.memory_bytes < 20 * 1024 * 1024

    with_starter(SpawnServer, test)
    packages = Path(spawnd.__file__).parents[2]
    script = (
        "import sys; sys.path.append(sys.argv[1]); import dworker.runners.spawnd; print(open('/proc/self/maps').read())"
    )
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(packages)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    assert "libc" in loaded
    assert "libssl" not in loaded
    assert "_asyncio" not in loaded
