"""The runner `stream`: one long-lived process a slot, definition version and params, many items through it.

Items are written in batches, answers parsed a chunk at a time: no system call, no asyncio task and no
timer a task. `framing.py` knows the two formats; `child.py` one process. Here is which process a
slot's attempts go to, and what is told to the core.

A process that dies takes down one attempt: the oldest without an answer, which it most likely was
busy with. All others in its hands are given to its successor. One that ends by itself with exit code
0, having answered something, has merely retired: nobody is blamed.
"""

import asyncio
from typing import Final

import msgspec
from msgspec.structs import replace

from districomp.arguments import substitute
from districomp.model import Blob, item_content
from dworker.cache import CacheError
from dworker.events import AttemptsEnded, StartAttempts, StopAttempts
from dworker.runners import environment
from dworker.runners.child import Child, Launch
from dworker.runners.framing import Waiting
from dworker.runners.host import Host

IDLE_S: Final = 60.0
"""A process that nobody needed for so long is ended."""
CHILDREN_MAX: Final = 4
"""A slot keeps so many processes of different definitions or params."""
ITEM_BYTES_MAX: Final = 64 * 1024 * 1024
"""A larger item cannot go through a stream: it has to be in memory."""


class StreamRunner:
    """Runs the attempts of `stream` definitions."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._children: dict[tuple[int, str, bytes], Child] = {}
        self._fetches: dict[tuple[int, int], asyncio.Task[None]] = {}  # slot, lease
        self._sweeper: asyncio.TimerHandle | None = None

    def start(self, effect: StartAttempts) -> None:
        """Give a slot's process more to do; answered by AttemptsEnded."""
        child = self._child(effect)
        columns = zip(effect.leases, effect.indexes, effect.items or [b""] * len(effect.leases), strict=True)
        ready: list[Waiting] = []
        for lease, index, item in columns:
            content = item_content(item)
            if isinstance(content, Blob):
                self._fetch(effect, child, Waiting(lease, effect.job, index, b""), content)
            else:
                ready.append(Waiting(lease, effect.job, index, content))
        if ready:
            child.give(ready)

    def stop(self, effect: StopAttempts) -> None:
        """End these attempts, and the process if it has them already."""
        for lease in effect.leases:
            task = self._fetches.pop((effect.slot, lease), None)
            if task is not None:
                task.cancel()
                self._fail(effect.slot, lease, effect.reason, b"")
        for (slot, _, _), child in self._children.items():
            if slot == effect.slot:
                child.stop(effect.leases, effect.reason)

    def close(self) -> None:
        """No more sweeping."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    # ---- processes ----

    def _child(self, effect: StartAttempts) -> Child:
        """The process for these attempts; it starts when it gets the first."""
        key = effect.slot, effect.definition.digest, msgspec.msgpack.encode(effect.params, order="deterministic")
        child = self._children.pop(key, None)
        if child is None:
            child = Child(self._host, effect.slot, effect.definition, lambda: self._prepare(effect), effect.params)
        self._children[key] = child  # last: the one used most recently
        mine = [one for one in self._children if one[0] == effect.slot]
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

    async def _prepare(self, effect: StartAttempts) -> Launch:
        """What a process of this definition and these params is started with. CacheError, OSError."""
        host, definition = self._host, effect.definition
        bundle = await host.cache.lay_out(definition.bundle) if definition.bundle else None
        argv = substitute(definition, effect.params, None, 0)
        entries = bundle.entries if bundle is not None else []
        folder = host.folders.make(bundle.folder if bundle is not None else None, entries)
        env = environment.variables(host.base_env, folder, definition.env)
        program = host.programs.find(argv[0], env.get("PATH", ""), folder)
        if not program:
            host.folders.remove(folder)
            raise CacheError(environment.not_installed(argv[0], env.get("PATH", "")))
        return Launch(folder, program, argv, env)

    # ---- large items ----

    def _fetch(self, effect: StartAttempts, child: Child, waiting: Waiting, blob: Blob) -> None:
        key = effect.slot, waiting.lease
        self._fetches[key] = self._host.loop.create_task(self._fetch_item(key, child, waiting, blob))

    async def _fetch_item(self, key: tuple[int, int], child: Child, waiting: Waiting, blob: Blob) -> None:
        slot, lease = key
        try:
            if blob.size > ITEM_BYTES_MAX:
                raise CacheError(f"An item of {blob.size:,} bytes is too large for a stream; use a command.")
            path = await self._host.cache.item(waiting.job, waiting.index, blob)
            data = await asyncio.to_thread(path.read_bytes)
            path.unlink(missing_ok=True)
        except (CacheError, OSError) as error:
            del self._fetches[key]
            self._fail(slot, lease, "not_started", str(error).encode())
        else:
            del self._fetches[key]
            child.give([replace(waiting, data=data)])

    def _fail(self, slot: int, lease: int, reason: str, why: bytes) -> None:
        self._host.post(AttemptsEnded(slot, [lease], [self._host.now()], [reason], stderr=[why]))
