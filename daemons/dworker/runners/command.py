"""The runner `command`: a process a task, in a folder and process group of its own.

Standard input is a file, standard output and error are pipes. What a process writes that ends within a few
milliseconds comes with its end: no pipe, no timer and no descriptor of it exists in here. Only those of a process that
lasts are watched. A slot may have several attempts in hand, in an order: each starts when the one before has ended, without
us; if that one lasts they come back, not started, and go back to the core.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from districomp.arguments import Arguments, ItemError, item_text
from districomp.model import Blob, Item, item_content
from dworker.cache import CacheError
from dworker.events import AttemptsEnded, StartAttempts, StopAttempts, TakeBack, TakenBack
from dworker.reports import DEFAULTS
from dworker.runners import environment, sandbox
from dworker.runners.capture import open_input
from dworker.runners.host import KILL_S, Host
from dworker.runners.output import Output, Tail
from dworker.runners.plan import Plan, Plans
from dworker.runners.spawn import Ending, Exit, Lasts, NotStarted, Request, Returned, can_queue
from dworker.runners.trees import KILL


class Attempt:
    """One task in its slot. `verdict`: why we ended it, '' if we did not. `output` and `errors`: of a process that lasts."""

    __slots__ = (
        "arguments", "attempt", "ended", "errors", "fetch", "folder", "index", "item", "item_file", "job", "key", "lease", "output",
        "plan", "slot", "started", "timers", "verdict",
    )  # fmt: skip

    def __init__(self, plan: Plan, arguments: Arguments, effect: StartAttempts, place: int) -> None:
        self.plan = plan
        self.arguments = arguments
        self.slot = effect.slot
        self.job = effect.job
        self.lease = effect.leases[place]
        self.index = effect.indexes[place]
        self.attempt = effect.attempts[place] if effect.attempts else 1
        self.item: Item | None = effect.items[place] if effect.items else None
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
    """Runs the attempts of `command` definitions, one at a time in each slot."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._attempts: dict[int, Attempt] = {}  # lease -> attempt
        self._plans = Plans()
        self._back: dict[int, list[Attempt]] = {}  # slot -> those to be told of
        self._over: dict[int, AttemptsEnded] = {}  # slot -> the same, of those that have ended
        self._can_queue = can_queue()

    def start(self, effect: StartAttempts) -> None:
        """Run attempts in a slot after those that are in it; each is answered by AttemptsEnded or TakenBack."""
        for place in range(len(effect.leases)):
            self._start(effect, place)

    def _start(self, effect: StartAttempts, place: int) -> None:
        try:
            plan = self._plans.get(effect)
            arguments = plan.arguments(effect.indexes[place])
        except Exception as error:  # noqa: BLE001 -- a definition that nobody checked must not end the worker
            why = f"The definition cannot be run on this worker: {error}."
            event = AttemptsEnded(
                effect.slot, [effect.leases[place]], [self._host.now()], ["not_started"], stderr=[why.encode()]
            )
            self._host.loop.call_soon(self._host.post, event)
            return
        attempt = Attempt(plan, arguments, effect, place)
        self._attempts[attempt.lease] = attempt
        if plan.definition.bundle and plan.bundle is None:
            plan.bundle = self._host.cache.bundle(plan.definition.bundle)
        large = attempt.item is not None and isinstance(item_content(attempt.item), Blob)
        if large or (plan.definition.bundle and plan.bundle is None):
            attempt.fetch = self._host.loop.create_task(self._fetch(attempt))
        else:
            self._launch(attempt)

    def stop(self, effect: StopAttempts) -> None:
        """End attempts: TERM, KILL later."""
        for lease in effect.leases:
            attempt = self._attempts.get(lease)
            if attempt is not None and attempt.slot == effect.slot:
                self._end(attempt, effect.reason)

    def take_back(self, effect: TakeBack) -> None:
        """Take back what is not ready to begin; the rest comes back by itself if it cannot begin soon."""
        for lease in effect.leases:
            attempt = self._attempts.get(lease)
            if attempt is not None and attempt.slot == effect.slot and attempt.fetch is not None:
                attempt.fetch.cancel()
                self._give_back(attempt)

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
            request = self._request(attempt, program, argv, env)
        except ItemError as error:
            self._not_started(attempt, f"The item cannot be an argument of the command: {error}.")
            return
        except OSError as error:
            self._not_started(attempt, f"The task could not be started on this worker: {error}.")
            return
        attempt.key = host.start(request, partial(self._ended, attempt), partial(self._lasts, attempt))

    def _request(self, attempt: Attempt, program: str, argv: list[str], env: dict[str, str]) -> Request:
        """The process as its definition has it, and its input. OSError leaves nothing open."""
        content = b"" if attempt.item is None else item_content(attempt.item)
        slot = attempt.slot if self._can_queue else -1
        captured: bytes | bool
        fds: Callable[[], tuple[int, ...]]
        if isinstance(content, Blob):
            file = attempt.item_file
            assert file is not None
            captured, fds = True, lambda: (open_input(file),)
        else:
            captured, fds = content, tuple
        request = Request(attempt.folder, program, argv, env, (), captured=captured, slot=slot)
        return self._host.isolated(request, attempt.plan.definition, attempt.plan.bundle, fds)

    def _text(self, attempt: Attempt) -> str | None:
        """The text of `{item}`, if an argument wants it."""
        if not attempt.arguments.uses_item or attempt.item is None:
            return None
        if isinstance(attempt.item, Blob) and attempt.item_file is not None:
            if attempt.item.size > attempt.arguments.item_bytes_max:
                return item_text(attempt.item)  # raises: it says that it is too large
            return item_text(attempt.item_file.read_bytes())
        return item_text(attempt.item)

    def _give_back(self, attempt: Attempt) -> None:
        """It has not begun. Those of a slot come one after another: they are told of at once, in their order."""
        self._clean(attempt)
        back = self._back.setdefault(attempt.slot, [])
        back.append(attempt)
        if len(back) == 1:
            self._host.loop.call_soon(self._tell_back, attempt.slot)

    def _tell_back(self, slot: int) -> None:
        back = self._back.pop(slot)
        items = [attempt.item for attempt in back if attempt.item is not None]
        self._host.post(TakenBack(slot, [attempt.lease for attempt in back], items))

    def _not_started(self, attempt: Attempt, why: str) -> None:
        row: dict[str, Any] = {"reasons": attempt.verdict or "not_started", "stderr": why.encode()}
        self._host.loop.call_soon(self._finish, attempt, row)

    # ---- while it runs ----

    def _lasts(self, attempt: Attempt, lasts: Lasts) -> None:
        """It runs for a while: read what it writes, and see to its time."""
        host, limits = self._host, attempt.plan.definition.limits
        attempt.started = lasts.started
        attempt.output = Output(
            host.loop,
            lasts.out_fd,
            host.spool_path,
            host.spoolers,
            bytes_max=limits.result_bytes,
            on_over=lambda: self._end(attempt, "result_too_large"),
            head=lasts.out,
        )
        attempt.errors = Tail(host.loop, lasts.err_fd, lasts.err)
        attempt.output.watch()
        attempt.errors.watch()
        if limits.time_s is not None:
            left_s = max(0.0, lasts.started + limits.time_s - host.now())
            attempt.timers.append(host.loop.call_later(left_s, self._end, attempt, "timeout"))

    def _end(self, attempt: Attempt, verdict: str) -> None:
        """End it; the first verdict stands."""
        if attempt.verdict or self._attempts.get(attempt.lease) is not attempt:
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
        if isinstance(ending, Returned) and not attempt.verdict:
            self._give_back(attempt)
            return
        result: bytes | asyncio.Future[Blob] = b""
        if attempt.output is not None and attempt.errors is not None:
            result = attempt.output.finish()
            attempt.errors.drain()
        elif isinstance(ending, Exit) and ending.said is not None:
            attempt.started, attempt.ended, result, _ = ending.said
            bytes_max = attempt.plan.definition.limits.result_bytes
            if bytes_max is not None and len(result) > bytes_max:
                attempt.verdict = attempt.verdict or "result_too_large"
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
            self._finish(attempt, {"reasons": attempt.verdict or "disk", "stderr": why.encode()})
            return
        self._judge(attempt, ending, future.result())

    def _judge(self, attempt: Attempt, ending: Ending, result: bytes | Blob) -> None:
        """Why it ended, and the rest of its report."""
        stderr = attempt.errors.text() if attempt.errors is not None else b""
        if isinstance(ending, NotStarted):
            attempt.started = None
            program = attempt.plan.definition.argv[0]
            if ending.errno:
                why = environment.why_not_started(ending.errno, ending.text, program)
            else:
                why = sandbox.why_not_started(stderr or ending.err, program)
            self._finish(attempt, {"reasons": attempt.verdict or "not_started", "stderr": why.encode()})
            return
        if isinstance(ending, Exit) and ending.said is not None:
            stderr = ending.said.err
        row: dict[str, Any] = {"stderr": stderr}
        if not isinstance(ending, Exit):
            row["reasons"] = attempt.verdict or "worker_stopped"
            self._finish(attempt, row)
            return
        code = os.waitstatus_to_exitcode(ending.status)
        if code < 0:
            row["signals"] = -code
        else:
            row["exit_codes"] = code
        row["cpu_s"], row["memory_bytes"] = ending.cpu_s, ending.memory_bytes
        reason = attempt.verdict or ending.over or ("signal" if code < 0 else "exit" if code else "")
        if reason:
            row["reasons"] = reason
        else:
            row["results"] = result
            if isinstance(result, Blob):
                assert attempt.output is not None and attempt.output.path is not None
                self._host.spooled[attempt.lease] = attempt.output.path
        self._finish(attempt, row)

    def _finish(self, attempt: Attempt, row: dict[str, Any]) -> None:
        """Clean up and tell the core. Those of a slot that end in one turn of the loop are told of at once, in their order."""
        self._clean(attempt)
        event = self._over.get(attempt.slot)
        if event is None:
            event = self._over[attempt.slot] = AttemptsEnded(attempt.slot, [], [], **{name: [] for name, _ in DEFAULTS})
            self._host.loop.call_soon(self._tell_over, attempt.slot)
        event.leases.append(attempt.lease)
        event.ended.append(attempt.ended or self._host.now())
        row["started"] = attempt.started
        for name, default in DEFAULTS:
            getattr(event, name).append(row.get(name, default))

    def _tell_over(self, slot: int) -> None:
        self._host.post(self._over.pop(slot))

    def _clean(self, attempt: Attempt) -> None:
        """Nothing of it is left here but what it reports."""
        host = self._host
        del self._attempts[attempt.lease]
        if attempt.folder:
            host.folders.remove(attempt.folder)
        if attempt.item_file is not None:
            attempt.item_file.unlink(missing_ok=True)
        if attempt.output is not None and attempt.lease not in host.spooled:
            attempt.output.discard()
