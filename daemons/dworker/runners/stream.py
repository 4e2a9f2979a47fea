"""The runners `stream` and `python`: long-lived processes, many items through each.

Items are written in batches, answers parsed a chunk at a time: no system call, no asyncio task and no
timer a task. `framing.py` and `frames.py` know the formats, `shelf.py` what an interpreter holds back; `child.py` one process. Here is which process
a slot's attempts go to, what it is started with, and what is told to the core.

A slot has a process for each definition version, and of `stream` for each params and arguments: so a
matrix over a param that stands in an argument has one for each of its values, a few of which are kept.
A python function's params are given with each call, so there one process does.

A process that dies takes down one attempt: the oldest without an answer, which it most likely was
busy with. All others in its hands are given to its successor. One that ends by itself with exit code
0, having answered something, has merely retired: nobody is blamed.
"""

import asyncio
import sys
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from districomp.model import Blob, item_content
from districomp.taskdef import Definition
from dworker.cache import CacheError
from dworker.events import AttemptsEnded, StartAttempts, StopAttempts, TakeBack, TakenBack
from dworker.runners import environment, interpreter
from dworker.runners import shelf as shelves
from dworker.runners.child import Child, Launch
from dworker.runners.frames import Frames, result_bytes_max
from dworker.runners.framing import Framing, Json, Lines, Waiting
from dworker.runners.host import Host
from dworker.runners.plan import Plan, Plans
from dworker.runners.spawn import Request

IDLE_S: Final = 60.0
"""A process that nobody needed for so long is ended."""
CHILDREN_MAX: Final = 4
"""A slot keeps so many processes of different definitions or params."""
ITEM_BYTES_MAX: Final = 64 * 1024 * 1024
"""A larger item cannot go through a stream: it has to be in memory."""

_Key = tuple[int, str, tuple[str, ...], bytes]
"""Slot, definition version, arguments, params."""


class StreamRunner:
    """Runs the attempts of `stream` and `python` definitions."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._plans = Plans()
        self._children: dict[_Key, Child] = {}
        self._fetches: dict[tuple[int, int], asyncio.Task[None]] = {}  # slot, lease
        self._sweeper: asyncio.TimerHandle | None = None

    def start(self, effect: StartAttempts) -> None:
        """Give a slot's process more to do; answered by AttemptsEnded."""
        try:
            plan = self._plans.get(effect)
            child = self._child(effect.slot, plan, effect.indexes[0])
            params = [plan.params(index) for index in effect.indexes]
        except Exception as error:  # noqa: BLE001 -- a definition that nobody checked must not end the worker
            why = f"The definition cannot be run on this worker: {error}.".encode()
            count = len(effect.leases)
            event = AttemptsEnded(
                effect.slot, effect.leases, [self._host.now()] * count, ["not_started"] * count, stderr=[why] * count
            )
            self._host.loop.call_soon(self._host.post, event)
            return
        columns = zip(effect.leases, effect.indexes, effect.items or [b""] * len(effect.leases), params, strict=True)
        ready: list[Waiting] = []
        for lease, index, item, given in columns:
            content = item_content(item)
            if isinstance(content, Blob):
                self._fetch(effect, child, Waiting(lease, effect.job, index, b"", given), content)
            else:
                ready.append(Waiting(lease, effect.job, index, content, given))
        if ready:
            child.give(ready)

    def stop(self, effect: StopAttempts) -> None:
        """End these attempts, and the process if it has them already."""
        for lease in effect.leases:
            task = self._fetches.pop((effect.slot, lease), None)
            if task is not None:
                task.cancel()
                self._fail(effect.slot, lease, effect.reason, b"")
        for (slot, *_), child in self._children.items():
            if slot == effect.slot:
                child.stop(effect.leases, effect.reason)

    def take_back(self, effect: TakeBack) -> None:
        """Answered by TakenBack, if any have not been read by the slot's process."""
        mine = [child for (slot, *_), child in self._children.items() if slot == effect.slot]
        taken = [waiting for child in mine for waiting in child.take_back(effect.leases)]
        if taken:
            leases, items = [waiting.lease for waiting in taken], [waiting.data for waiting in taken]
            self._host.post(TakenBack(effect.slot, leases, list(items)))

    def close(self) -> None:
        """No more sweeping."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    # ---- processes ----

    def _child(self, slot: int, plan: Plan, index: int) -> Child:
        """The process for a task; it starts when it gets the first."""
        definition = plan.definition
        if definition.runner == "python":
            argv: tuple[str, ...] = ()
            key: _Key = slot, definition.digest, argv, b""
        else:
            argv = tuple(plan.arguments(index).argv(None, 0))
            key = slot, definition.digest, argv, plan.given_bytes
        child = self._children.pop(key, None)
        if child is None:
            child = Child(
                self._host, slot, definition, lambda: self._prepare(definition, argv), lambda: make_framing(definition)
            )
        self._children[key] = child  # last: the one used most recently
        mine = [one for one in self._children if one[0] == slot]
        for spare in mine[: max(0, len(mine) - CHILDREN_MAX)]:
            if self._children[spare].is_idle:
                self._children.pop(spare).retire()
        if self._sweeper is None:
            self._sweeper = self._host.loop.call_later(IDLE_S / 2, self._sweep)
        return child

    def _sweep(self) -> None:
        """End the processes that were idle for long."""
        self._sweeper = None
        before = self._host.now() - IDLE_S
        for key, child in list(self._children.items()):
            if child.is_idle and child.used_at < before:
                self._children.pop(key).retire()
        if self._children:
            self._sweeper = self._host.loop.call_later(IDLE_S / 2, self._sweep)

    async def _prepare(self, definition: Definition, argv: tuple[str, ...]) -> Launch:
        """What a process of this definition and these arguments is started with. CacheError, OSError."""
        host = self._host
        bundle = await host.cache.lay_out(definition.bundle) if definition.bundle else None
        bundle_folder = bundle.folder if bundle is not None else None
        if definition.runner == "python":
            argv = interpreter_argv(definition, bundle_folder)
        folder = host.folders.make(bundle_folder, bundle.entries if bundle is not None else [])
        env = environment.variables(host.base_env, folder, definition.env)
        program = host.programs.find(argv[0], env.get("PATH", ""), folder)
        if not program:
            host.folders.remove(folder)
            raise CacheError(environment.not_installed(argv[0], env.get("PATH", "")))
        shelf = None
        if definition.runner == "python":
            shelf = shelves.make(folder)
            argv = (*argv, shelves.NAME if shelf is not None else "")
        return Launch(Request(folder, program, list(argv), env, ()), bundle, shelf)

    # ---- large items ----

    def _fetch(self, effect: StartAttempts, child: Child, waiting: Waiting, blob: Blob) -> None:
        key = effect.slot, waiting.lease
        self._fetches[key] = self._host.loop.create_task(self._fetch_item(key, child, waiting, blob))

    async def _fetch_item(self, key: tuple[int, int], child: Child, waiting: Waiting, blob: Blob) -> None:
        slot, lease = key
        child.awaited += 1
        try:
            if blob.size > ITEM_BYTES_MAX:
                raise CacheError(f"An item of {blob.size:,} bytes is too large for a stream; use a command.")
            path = await self._host.cache.item(waiting.job, waiting.index, blob)
            try:
                data = await asyncio.to_thread(path.read_bytes)
            finally:
                path.unlink(missing_ok=True)
        except (CacheError, OSError) as error:
            del self._fetches[key]
            self._fail(slot, lease, "not_started", str(error).encode())
        else:
            del self._fetches[key]
            child.give([replace(waiting, data=data)])
        finally:
            child.awaited -= 1

    def _fail(self, slot: int, lease: int, reason: str, why: bytes) -> None:
        self._host.post(AttemptsEnded(slot, [lease], [self._host.now()], [reason], stderr=[why]))


def interpreter_argv(definition: Definition, bundle: Path | None) -> tuple[str, ...]:
    """The command of a python definition's process: our own interpreter, and nothing of its user's surroundings.

    The name of its shelf comes last.
    -I: no PYTHON* variables, no packages of the user's own; -B: it writes nothing into the bundle.
    """
    limit = result_bytes_max(definition.limits.result_bytes)
    script = [sys.executable, "-I", "-B", "-X", "utf8", interpreter.__file__]
    return (*script, str(bundle or ""), definition.argv[0], str(limit))


def make_framing(definition: Definition) -> Framing:
    """A new conversation with a process of this definition."""
    limit = definition.limits.result_bytes
    if definition.runner == "python":
        return Frames(limit)
    return Lines(limit) if definition.format == "lines" else Json(limit)
