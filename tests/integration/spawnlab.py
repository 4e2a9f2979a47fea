"""Starting processes without a worker around it: a spawner, what its processes wrote, and how they ended."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from dworker.runners.capture import open_input
from dworker.runners.spawn import Ending, Exit, Lasts, Request, Spawner
from tests.patience import PATIENCE_S

WAIT_S = PATIENCE_S
PYTHON = [sys.executable, "-c"]
Kind = Callable[[Callable[[int, Ending], None]], Spawner]


class Starter:
    """A spawner, what its processes wrote, and how they ended."""

    def __init__(self, kind: Kind) -> None:
        self.ends: dict[int, Ending] = {}
        self.changed = asyncio.Event()
        self.outputs: dict[int, int] = {}
        self.lasting: dict[int, Lasts] = {}
        self.spawner = kind(self.on_end)

    def on_end(self, key: int, ending: Ending) -> None:
        assert key not in self.ends, "told twice"
        self.ends[key] = ending
        self.changed.set()

    def on_last(self, key: int, lasts: Lasts) -> None:
        assert key not in self.ends
        assert key not in self.lasting, "told twice"
        self.lasting[key] = lasts
        self.outputs[key] = lasts.out_fd
        os.close(lasts.err_fd)
        self.changed.set()

    def capture(self, key: int, argv: list[str], data: bytes = b"", slot: int = -1, folder: str = "/") -> None:
        """Start one whose output comes with its end."""
        env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder}
        self.spawner.spawn(key, Request(folder, f"/bin/{argv[0]}", argv, env, (), captured=data, slot=slot))

    def start(self, key: int, argv: list[str], data: bytes = b"", folder: str = "/", program: str = "") -> None:
        env = {"PATH": os.environ["PATH"], "KEY": str(key), "HOME": folder, "TMPDIR": folder}
        self.start_as(key, Request(folder, program or f"/bin/{argv[0]}", argv, env, ()), data)

    def start_as(self, key: int, request: Request, data: bytes = b"", *, errors: bool = False) -> None:
        """Start what is asked for, with descriptors of ours before its own; with `errors` both outputs are one."""
        reading, writing = os.pipe()
        self.outputs[key] = reading
        error = os.dup(writing) if errors else os.open(os.devnull, os.O_WRONLY)
        self.spawner.spawn(key, request._replace(fds=(open_input(data), writing, error, *request.fds)))

    async def ended(self, *keys: int) -> list[Ending]:
        async with asyncio.timeout(WAIT_S):
            while not all(key in self.ends for key in keys):
                self.changed.clear()
                await self.changed.wait()
        return [self.ends[key] for key in keys]

    def output(self, key: int) -> bytes:
        reading = self.outputs.pop(key)
        with os.fdopen(reading, "rb") as file:
            return file.read()

    async def close(self) -> None:
        await self.spawner.close()
        for reading in self.outputs.values():
            os.close(reading)


def with_starter(kind: Kind, test: Callable[[Starter], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        before = open_descriptors()
        starter = Starter(kind)
        try:
            await test(starter)
        finally:
            await starter.close()
        assert open_descriptors() <= before, "descriptors were left open"

    asyncio.run(body())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 -- of another process
            await asyncio.sleep(0.01)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def code(ending: Ending) -> int:
    assert isinstance(ending, Exit)
    return os.waitstatus_to_exitcode(ending.status)
