"""The runner `command`: a process a task, in a folder and process group of its own.

Standard input is a file, standard output and error are pipes. Nothing of a process that ends within
a few milliseconds passes the event loop's poller: its pipes are read when its end is known, and only
those of a process that lives longer are watched.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from districomp.arguments import Arguments, ItemError, item_text
from districomp.model import Blob, Item, item_content
from dworker.cache import CacheError
from dworker.events import AttemptsEnded, StartAttempts, StopAttempts
from dworker.runners import environment, pipes, sandbox
from dworker.runners.host import KILL_S, Host, open_input
from dworker.runners.output import Output, Tail
from dworker.runners.plan import Plan, Plans
from dworker.runners.spawn import Ending, Exit, NotStarted, Request
from dworker.runners.trees import KILL

WATCH_S: Final = 0.005
"""A process that lives longer has its pipes watched: until then they take 64 KiB by themselves."""


class Attempt:
    """One task in its slot. `verdict`: why we ended it, '' if we did not."""

    __slots__ = (
        "arguments", "attempt", "ended", "errors", "fetch", "folder", "index", "item", "item_file", "job", "key", "lease", "output",
        "plan", "slot", "started", "timers", "verdict",
    )  # fmt: skip

    def __init__(self, plan: Plan, arguments: Arguments, effect: StartAttempts) -> None:
        self.plan = plan
        self.arguments = arguments
        self.slot = effect.slot
        self.job = effect.job
        self.lease = effect.leases[0]
        self.index = effect.indexes[0]
        self.attempt = effect.attempts[0] if effect.attempts else 1
        self.item: Item | None = effect.items[0] if effect.items else None
        self.item_file: Path | None = None
        self.folder = ""
        self.key = 0
        self.started: float | None = None
        self.ended = 0.0
        self.verdict = ""
        self.output: Output | None = None
        self.errors: Tail | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.fetch: asyncio.Task[None] | None = None


class CommandRunner:
    """Runs the attempts of `command` definitions, one a slot."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._attempts: dict[int, Attempt] = {}  # slot -> attempt
        self._plans = Plans()

    def start(self, effect: StartAttempts) -> None:
        """Run one attempt in a free slot; answered by AttemptsEnded."""
        assert len(effect.leases) == 1
        assert effect.slot not in self._attempts
        try:
            plan = self._plans.get(effect)
            arguments = plan.arguments(effect.indexes[0])
        except Exception as error:  # noqa: BLE001 -- a definition that nobody checked must not end the worker
            why = f"The definition cannot be run on this worker: {error}."
            event = AttemptsEnded(
                effect.slot, effect.leases, [self._host.now()], ["not_started"], stderr=[why.encode()]
            )
            self._host.loop.call_soon(self._host.post, event)
            return
        attempt = Attempt(plan, arguments, effect)
        self._attempts[attempt.slot] = attempt
        if plan.definition.bundle and plan.bundle is None:
            plan.bundle = self._host.cache.bundle(plan.definition.bundle)
        large = attempt.item is not None and isinstance(item_content(attempt.item), Blob)
        if large or (plan.definition.bundle and plan.bundle is None):
            attempt.fetch = self._host.loop.create_task(self._fetch(attempt))
        else:
            self._launch(attempt)

    def stop(self, effect: StopAttempts) -> None:
        """End an attempt: TERM, KILL later."""
        attempt = self._attempts.get(effect.slot)
        if attempt is not None and attempt.lease in effect.leases:
            self._end(attempt, effect.reason)

    # ---- before the process ----

    async def _fetch(self, attempt: Attempt) -> None:
        """Lay out the bundle, get the large item, then launch."""
        cache, plan = self._host.cache, attempt.plan
        try:
            if plan.definition.bundle:
                plan.bundle = await cache.lay_out(plan.definition.bundle)
            content = None if attempt.item is None else item_content(attempt.item)
            if isinstance(content, Blob):
                attempt.item_file = await cache.item(attempt.job, attempt.index, content)
        except CacheError as error:
            attempt.fetch = None
            self._not_started(attempt, str(error))
        else:
            attempt.fetch = None
            self._launch(attempt)

    def _launch(self, attempt: Attempt) -> None:
        host, plan = self._host, attempt.plan
        definition = plan.definition
        entries = plan.bundle.entries if plan.bundle is not None else []
        try:
            argv = attempt.arguments.argv(self._text(attempt), attempt.index)
            attempt.folder = host.folders.make(plan.bundle.folder if plan.bundle is not None else None, entries)
            env = environment.variables(host.base_env, attempt.folder, definition.env)
            env |= environment.task_variables(attempt.job, attempt.index, attempt.attempt, attempt.item)
            path = env.get("PATH", "")
            program = host.programs.find(argv[0], path, attempt.folder)
            if not program:
                self._not_started(attempt, environment.not_installed(argv[0], path))
                return
            request = host.isolated(
                Request(attempt.folder, program, argv, env, ()), definition, plan.bundle, lambda: self._open(attempt)
            )
        except ItemError as error:
            self._not_started(attempt, f"The item cannot be an argument of the command: {error}.")
            return
        except OSError as error:
            self._not_started(attempt, f"The task could not be started on this worker: {error}.")
            return
        attempt.started = host.now()
        attempt.key = host.start(request, lambda ending: self._ended(attempt, ending))
        attempt.timers.append(host.loop.call_later(WATCH_S, self._watch, attempt))
        if definition.limits.time_s is not None:
            attempt.timers.append(host.loop.call_later(definition.limits.time_s, self._end, attempt, "timeout"))

    def _text(self, attempt: Attempt) -> str | None:
        """The text of `{item}`, if an argument wants it."""
        if not attempt.arguments.uses_item or attempt.item is None:
            return None
        if isinstance(attempt.item, Blob) and attempt.item_file is not None:
            if attempt.item.size > attempt.arguments.item_bytes_max:
                return item_text(attempt.item)  # raises: it says that it is too large
            return item_text(attempt.item_file.read_bytes())
        return item_text(attempt.item)

    def _open(self, attempt: Attempt) -> tuple[int, int, int]:
        """The three descriptors of the process; our ends of its pipes in the attempt. OSError closes all."""
        host = self._host
        opened: list[int] = []
        try:
            content = b"" if attempt.item is None else item_content(attempt.item)
            data = attempt.item_file if isinstance(content, Blob) else content
            assert data is not None
            opened.append(open_input(data))
            opened += pipes.reading()
            opened += pipes.reading()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        stdin, out, out_theirs, err, err_theirs = opened
        attempt.output = Output(
            host.loop,
            out,
            host.spool_path,
            host.spoolers,
            bytes_max=attempt.plan.definition.limits.result_bytes,
            on_over=lambda: self._end(attempt, "result_too_large"),
        )
        attempt.errors = Tail(host.loop, err)
        return stdin, out_theirs, err_theirs

    def _not_started(self, attempt: Attempt, why: str) -> None:
        columns: dict[str, list[Any]] = {"reasons": [attempt.verdict or "not_started"], "stderr": [why.encode()]}
        self._host.loop.call_soon(self._finish, attempt, columns)

    # ---- while it runs ----

    def _watch(self, attempt: Attempt) -> None:
        if attempt.output is not None and attempt.errors is not None:
            attempt.output.watch()
            attempt.errors.watch()

    def _end(self, attempt: Attempt, verdict: str) -> None:
        """End it; the first verdict stands."""
        if attempt.verdict or self._attempts.get(attempt.slot) is not attempt:
            return
        attempt.verdict = verdict
        if attempt.fetch is not None:
            attempt.fetch.cancel()
            attempt.fetch = None
            self._not_started(attempt, "")
        elif attempt.key:
            self._host.kill(attempt.key, signal.SIGTERM)
            kill: Callable[[], None] = lambda: self._host.kill(attempt.key, KILL)  # noqa: E731
            attempt.timers.append(self._host.loop.call_later(KILL_S, kill))

    # ---- after it ----

    def _ended(self, attempt: Attempt, ending: Ending) -> None:
        attempt.ended = self._host.now()
        for timer in attempt.timers:
            timer.cancel()
        assert attempt.output is not None and attempt.errors is not None
        result = attempt.output.finish()
        attempt.errors.drain()
        if isinstance(result, bytes):
            self._judge(attempt, ending, result)
        else:
            result.add_done_callback(lambda future: self._spooled(attempt, ending, future))

    def _spooled(self, attempt: Attempt, ending: Ending, future: "asyncio.Future[Blob]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, OSError):
            why = f"The result could not be kept on this worker: {error.strerror}."
            self._finish(attempt, {"reasons": [attempt.verdict or "disk"], "stderr": [why.encode()]})
            return
        self._judge(attempt, ending, future.result())

    def _judge(self, attempt: Attempt, ending: Ending, result: bytes | Blob) -> None:
        """Why it ended, and the columns of its report."""
        assert attempt.output is not None and attempt.errors is not None
        if isinstance(ending, NotStarted):
            attempt.started = None
            program = attempt.plan.definition.argv[0]
            if ending.errno:
                why = environment.why_not_started(ending.errno, ending.text, program)
            else:
                why = sandbox.why_not_started(attempt.errors.text(), program)
            self._finish(attempt, {"reasons": [attempt.verdict or "not_started"], "stderr": [why.encode()]})
            return
        columns: dict[str, list[Any]] = {"stderr": [attempt.errors.text()]}
        if not isinstance(ending, Exit):
            columns["reasons"] = [attempt.verdict or "worker_stopped"]
            self._finish(attempt, columns)
            return
        code = os.waitstatus_to_exitcode(ending.status)
        columns["exit_codes"] = [code if code >= 0 else None]
        if code < 0:
            columns["signals"] = [-code]
        columns["cpu_s"], columns["memory_bytes"] = [ending.cpu_s], [ending.memory_bytes]
        reason = attempt.verdict or ending.over or ("signal" if code < 0 else "exit" if code else "")
        if reason:
            columns["reasons"] = [reason]
        else:
            columns["results"] = [result]
            if isinstance(result, Blob):
                assert attempt.output.path is not None
                self._host.spooled[attempt.lease] = attempt.output.path
        self._finish(attempt, columns)

    def _finish(self, attempt: Attempt, columns: dict[str, list[Any]]) -> None:
        """Clean up and tell the core."""
        host = self._host
        del self._attempts[attempt.slot]
        if attempt.folder:
            host.folders.remove(attempt.folder)
        if attempt.item_file is not None:
            attempt.item_file.unlink(missing_ok=True)
        if attempt.output is not None and attempt.lease not in host.spooled:
            attempt.output.discard()
        ended = attempt.ended or host.now()
        host.post(AttemptsEnded(attempt.slot, [attempt.lease], [ended], started=[attempt.started], **columns))
