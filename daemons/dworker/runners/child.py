"""One lasting process, of a `stream` or `python` definition: started when there is work, fed, heard, ended, started anew.

Owns the process' pipes and the attempts that it has in hand. `started` of an attempt is when the one
before it was answered. Must not know which slots and definitions there are.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from districomp.model import INLINE_BYTES_MAX
from districomp.taskdef import Definition
from dworker.cache import Bundle, CacheError
from dworker.events import AttemptsEnded
from dworker.runners import environment, pipes, sandbox
from dworker.runners.framing import Answers, Framing, FramingError, Waiting
from dworker.runners.host import KILL_S, Host
from dworker.runners.output import READ_BYTES, Tail
from dworker.runners.shelf import Shelf
from dworker.runners.spawn import Ending, Exit, NotStarted, Request
from dworker.runners.trees import KILL

DRAIN_READS: Final = 64
"""What a dead process left in its pipe is less than this many reads; an heir that goes on writing is not waited for."""
DEAF_S: Final = 1.0
"""A process that has closed a pipe has so long to end by itself."""
CROWD: Final = 16
"""With so many in hand answers are quick: they are not read one by one, but GATHER_S after the last read."""
GATHER_S: Final = 0.001
LOOK_MAX_S: Final = 0.1
"""Between two looks at a process' shelf while a task takes long: GATHER_S at first, then twice as long each time."""
_DEAF: Final = "The program closed its standard input before it had read all items."


class Launch(NamedTuple):
    """What to start a process with: without its descriptors yet, and not in its sandbox."""

    request: Request
    bundle: Bundle | None
    shelf: Shelf | None


class Child:
    """A process, or the place of one. `used_at`: when it was last given something. `awaited`: how many it will be given soon."""

    def __init__(
        self,
        host: Host,
        slot: int,
        definition: Definition,
        prepare: Callable[[], Awaitable[Launch]],
        make_framing: Callable[[], Framing],
    ) -> None:
        self._host = host
        self._slot = slot
        self._definition = definition
        self._prepare = prepare
        self._make_framing = make_framing
        self.used_at = host.now()
        self.awaited = 0
        self._hand: dict[int, Waiting] = {}  # given to the process, oldest first
        self._queue: list[Waiting] = []  # for its successor, or until it is started
        self._stops: dict[int, str] = {}  # lease -> reason: end the process for these
        self._verdict: tuple[str, str] | None = None  # reason and sentence for the oldest in hand
        self._accused = ""  # what a process said that nobody had asked; the next attempt pays for it
        self._since = 0.0
        self._retired = False
        self._launch: Launch | None = None
        self._starting: asyncio.Task[None] | None = None
        self._key = 0
        self._framing = make_framing()
        self._stdin = self._stdout = -1
        self._errors: Tail | None = None
        self._unsent = bytearray()
        self._writing = False
        self._gathering: asyncio.TimerHandle | None = None
        self._shelf: Shelf | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._look_s = GATHER_S
        self._clock: asyncio.TimerHandle | None = None
        self._killer: asyncio.TimerHandle | None = None

    @property
    def _program(self) -> str:
        """Its name, for people."""
        return self._launch.request.argv[0] if self._launch is not None else self._definition.argv[0]

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not (self._hand or self._queue or self._starting or self.awaited)

    def give(self, batch: list[Waiting]) -> None:
        """More attempts for this process."""
        self.used_at = self._host.now()
        if self._accused:
            why, self._accused = self._accused, ""
            self._tell([batch[0].lease], reasons=["output_invalid"], stderr=[why.encode()])
            batch = batch[1:]
        refused = [(waiting, why) for waiting in batch if (why := self._framing.refusal(waiting))]
        if refused:
            batch = [waiting for waiting in batch if not self._framing.refusal(waiting)]
            self._refuse(refused)
        if not batch:
            return
        if self._key and not self._is_ending:
            self._write(batch)
        else:
            self._queue += batch
            self._start()

    def stop(self, leases: list[int], reason: str) -> None:
        """End these attempts; the process dies for those that it has already, and others in its hand go on in the next."""
        waiting = {one.lease for one in self._queue}
        dropped = [lease for lease in leases if lease in waiting]
        if dropped:
            self._queue = [one for one in self._queue if one.lease not in dropped]
            self._tell(dropped, reasons=[reason] * len(dropped))
        given = [lease for lease in leases if lease in self._hand]
        if given:
            self._stops.update(dict.fromkeys(given, reason))
            self._end()

    def take_back(self, leases: list[int]) -> list[Waiting]:
        """Those of these attempts that no process has read, oldest first; they are not this one's any more."""
        wanted = dict.fromkeys(leases)
        taken = [one for one in self._queue if one.lease in wanted]
        if taken:
            self._queue = [one for one in self._queue if one.lease not in wanted]
        if self._key and self._hand and not self._is_ending:
            taken = self._take_back_unread(wanted) + taken
        return taken

    def _take_back_unread(self, wanted: dict[int, None]) -> list[Waiting]:
        hand = list(self._hand.values())
        count = 0
        while count < len(hand) - 1 and hand[-count - 1].lease in wanted:
            count += 1
        if not count:
            return []
        unread = pipes.take_back(self._stdin) + self._unsent
        count, size = self._framing.forget(hand, unread, count)
        # The beginning may be the rest of an item that it has read a part of.
        self._unsent[:] = unread[: len(unread) - size]
        self._writable()
        taken = hand[len(hand) - count :]
        for waiting in taken:
            del self._hand[waiting.lease]
        return taken

    def retire(self) -> None:
        """Nobody needs it any more: its input ends, and it is killed if that is not enough."""
        self._retired = True
        if self._key:
            self._close_stdin()
            self._killer = self._host.loop.call_later(KILL_S, self._kill, KILL)

    # ---- start and end ----

    @property
    def _is_ending(self) -> bool:
        return bool(self._stops) or self._verdict is not None or self._stdin < 0 or self._stdout < 0

    def _start(self) -> None:
        if self._starting is None and not self._key:
            self._starting = self._host.loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            launch = self._launch = await self._prepare()
            try:
                request = self._host.isolated(launch.request, self._definition, launch.bundle, self._open)
            except OSError:
                self._host.folders.remove(launch.request.folder)
                raise
        except (CacheError, OSError) as error:
            self._starting = None
            self._give_up(str(error))
            return
        self._starting = None
        self._framing, self._shelf = self._make_framing(), launch.shelf
        self._key = self._host.start(request, self._ended)
        pipes.add_reader(self._host.loop, self._stdout, self._heard)
        # Nothing is ever to be read there: it wakes us when the other end is closed.
        pipes.add_reader(self._host.loop, self._stdin, self._unheard)
        assert self._errors is not None
        self._errors.watch()
        batch, self._queue = self._queue, []
        if batch:
            self._write(batch)

    def _open(self) -> tuple[int, int, int]:
        """The process' three descriptors; our ends of its pipes are kept. OSError leaves none open."""
        stdin, self._stdin, self._stdout, stdout_theirs, stderr, stderr_theirs = pipes.opened()
        self._errors = Tail(self._host.loop, stderr)
        return stdin, stdout_theirs, stderr_theirs

    def _give_up(self, why: str) -> None:
        """No process can be had: all that wait for one fail."""
        if self._queue:
            batch, self._queue = self._queue, []
            self._refuse([(waiting, why) for waiting in batch])

    def _refuse(self, refused: list[tuple[Waiting, str]]) -> None:
        reasons, words = ["not_started"] * len(refused), [why.encode() for _, why in refused]
        self._tell([waiting.lease for waiting, _ in refused], reasons=reasons, stderr=words)

    def _end(self) -> None:
        """TERM, KILL later. What it still answers counts."""
        if self._key and self._killer is None:
            self._kill(signal.SIGTERM)
            self._killer = self._host.loop.call_later(KILL_S, self._kill, KILL)

    def _expect_end(self, why: str, *, has_all: bool = False) -> None:
        """It has closed a pipe: most likely it is about to end by itself, else it is ended.

        `has_all`: it has read all that it was given, and so may go on until that is answered.
        """
        key, loop = self._key, self._host.loop

        def check() -> None:
            if self._key != key or not key:
                return
            if self._hand and has_all and self._stdout >= 0:
                loop.call_later(DEAF_S, check)
                return
            if self._hand and self._verdict is None and not self._stops:
                self._verdict = "output_invalid", why
            self._end()

        loop.call_later(DEAF_S, check)

    def _kill(self, number: int) -> None:
        if self._key:
            self._host.kill(self._key, number)

    def _ended(self, ending: Ending) -> None:
        """The process is gone: take its last answers, blame one attempt if it must be, give the others to the next."""
        for _ in range(DRAIN_READS):
            if self._stdout < 0 or not self._readable():
                break
        self._take_untold()
        assert self._errors is not None
        self._errors.drain()
        tail = self._errors.text(self._shelf.said_bytes if self._shelf is not None else 0)
        self._key = 0
        self._close_stdin()
        self._close_stdout()
        for timer in filter(None, (self._clock, self._killer, self._looking)):
            timer.cancel()
        self._clock = self._killer = self._looking = self._shelf = None
        self._unsent.clear()
        if self._launch is not None:
            self._host.folders.remove(self._launch.request.folder)
        if isinstance(ending, NotStarted):
            self._queue = [*self._hand.values(), *self._queue]
            self._hand.clear()
            if ending.errno:
                self._give_up(environment.why_not_started(ending.errno, ending.text, self._program))
            else:
                self._give_up(sandbox.why_not_started(self._errors.text(), self._program))
        else:
            self._blame(ending, tail)
        self._stops.clear()
        self._verdict = None
        self._queue = [*self._hand.values(), *self._queue]
        self._hand.clear()
        if self._queue and not self._retired:
            self._start()

    def _blame(self, ending: Exit | Any, tail: bytes) -> None:
        """Fail what was to be stopped, and else the oldest in hand, if the end was not in good order; `tail`: its last words."""
        stopped = [lease for lease in self._hand if lease in self._stops]
        if stopped:
            self._tell(stopped, reasons=[self._stops[lease] for lease in stopped])
        for lease in stopped:
            del self._hand[lease]
        if not self._hand or (stopped and self._verdict is None):
            return
        head = next(iter(self._hand))
        columns: dict[str, list[Any]] = {"stderr": [tail]}
        if isinstance(ending, Exit):
            code = os.waitstatus_to_exitcode(ending.status)
            if self._verdict is None and code == 0 and self._framing.may_end:
                return
            columns["exit_codes"], columns["signals"] = [code if code >= 0 else None], [-code if code < 0 else None]
            reason, why = self._verdict or (ending.over or ("signal" if code < 0 else "exit"), "")
            if code == 0 and self._verdict is None:
                reason, why = "output_invalid", self._framing.no_answer
        else:
            reason, why = self._verdict or ("worker_stopped", "")
        columns["reasons"] = [reason]
        if why:
            columns["stderr"] = [(tail + b"\n" if tail else b"") + why.encode()]
        del self._hand[head]
        self._tell([head], started=[self._since], **columns)

    # ---- in and out ----

    def _write(self, batch: list[Waiting]) -> None:
        if not self._hand:
            self._since = self._host.now()
            self._arm()
        for waiting in batch:
            self._hand[waiting.lease] = waiting
        self._unsent += self._framing.encode(batch)
        if not self._writing:
            self._writable()
        self._watch_shelf()

    def _writable(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: pipes.write(self._stdin, memoryview(self._unsent)[:READ_BYTES])]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                pipes.add_writer(self._host.loop, self._stdin, self._writable)
            return
        except OSError:
            self._close_stdin()
            self._expect_end(_DEAF)
            return
        self._stop_writing()

    def _unheard(self) -> None:
        """Nobody can read what we write any more, though there may be nothing left to write."""
        pipes.remove_reader(self._host.loop, self._stdin)
        has_all = not self._unsent and not pipes.unread_bytes(self._stdin)
        self._close_stdin()
        self._expect_end(_DEAF, has_all=has_all)

    def _heard(self) -> None:
        """Read an answer, or have the next ones come together."""
        self._readable()
        if len(self._hand) >= CROWD and self._stdout >= 0:
            pipes.remove_reader(self._host.loop, self._stdout)
            self._gathering = self._host.loop.call_later(GATHER_S, self._gather)

    def _gather(self) -> None:
        self._readable()
        if self._stdout < 0:
            return
        if len(self._hand) >= CROWD:
            self._gathering = self._host.loop.call_later(GATHER_S, self._gather)
        else:
            self._gathering = None
            pipes.add_reader(self._host.loop, self._stdout, self._heard)

    def _readable(self) -> bool:
        try:
            data = pipes.read(self._stdout, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_stdout()
            self._expect_end("The program closed its standard output before it had answered.")
            return False
        if self._verdict is not None:
            return True  # too late, or it cannot be trusted any more
        self._hear(lambda: self._framing.receive(data))
        self._watch_shelf()
        return True

    def _hear(self, answers: Callable[[], Answers], *, is_last: bool = False) -> None:
        try:
            self._take(answers())
        except FramingError as error:
            self._take(error.before)
            if not is_last:
                self._take_untold(spare_newest=True)
            if self._hand:
                self._verdict = error.reason, str(error)
            else:
                self._accused = str(error)
                self._close_stdin()
            self._end()

    # ---- what it has answered and not written: only an interpreter has any ----

    def _take_untold(self, *, spare_newest: bool = False) -> None:
        """It is gone, or will be: nothing more of it will come by the pipe."""
        shelf = self._shelf
        if shelf is not None and self._verdict is None:
            self._hear(lambda: self._framing.overhear(shelf.look(), spare_newest=spare_newest), is_last=True)

    def _watch_shelf(self) -> None:
        """Something went there or came from there: look soon. One task alone is never behind another."""
        if self._shelf is None or len(self._hand) < 2 or not self._key:
            return
        if self._looking is not None and self._look_s > GATHER_S:
            self._looking.cancel()
            self._looking = None
        if self._looking is None:
            self._look_s = GATHER_S
            self._looking = self._host.loop.call_later(GATHER_S, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._shelf is None or len(self._hand) < 2 or self._verdict is not None:
            return
        if (untold := self._shelf.settled()) is not None:
            self._hear(lambda: self._framing.overhear(untold))
        self._look_s = min(2 * self._look_s, LOOK_MAX_S)
        self._looking = self._host.loop.call_later(self._look_s, self._look)

    def _take(self, answers: Answers) -> None:
        leases, results, failures = answers
        if leases:
            self._succeed(leases, results)
        for answer in failures:
            del self._hand[answer.lease]
            code = [] if answer.exit_code is None else [answer.exit_code]
            self._tell(
                [answer.lease], reasons=[answer.reason], exit_codes=code, stderr=[answer.why], started=[self._since]
            )

    def _succeed(self, leases: list[int], results: list[bytes]) -> None:
        for lease in leases:
            del self._hand[lease]
        now = self._host.now()
        started: list[float | None] = [now] * len(leases)
        started[0] = self._since
        self._since = now
        event = AttemptsEnded(self._slot, leases, [now] * len(leases), started=started, results=list(results))
        if sum(map(len, results)) > INLINE_BYTES_MAX:
            self._host.spool(event)
        self._host.post(event)

    def _tell(self, leases: list[int], **columns: Any) -> None:
        now = self._host.now()
        if "started" in columns:
            self._since = now
        self._host.post(AttemptsEnded(self._slot, leases, [now] * len(leases), **columns))

    # ---- the head's time ----

    def _arm(self) -> None:
        limit = self._definition.limits.time_s
        if limit is not None and self._clock is None:
            self._clock = self._host.loop.call_at(
                self._host.loop.time() + max(0.0, self._since + limit - self._host.now()), self._check_time
            )

    def _check_time(self) -> None:
        """The timer went off: the head may be another one by now, then it is set anew."""
        self._clock = None
        limit = self._definition.limits.time_s
        if self._gathering is not None:
            self._readable()
        if not self._hand or limit is None:
            return
        if self._host.now() >= self._since + limit:
            if not self._is_ending:
                self._verdict = "timeout", ""
                self._end()
        else:
            self._arm()

    # ---- pipes ----

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            pipes.remove_writer(self._host.loop, self._stdin)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._stop_writing()
            pipes.remove_reader(self._host.loop, self._stdin)
            pipes.close_writing(self._stdin)
            self._stdin = -1

    def _close_stdout(self) -> None:
        if self._stdout >= 0:
            if self._gathering is not None:
                self._gathering.cancel()
                self._gathering = None
            pipes.remove_reader(self._host.loop, self._stdout)
            os.close(self._stdout)
            self._stdout = -1
