"""The worker's body: brings events to the core, carries its effects out, and ends in good order.

Owns the event loop's side of everything. Decides nothing: what runs, what is sent and when to end is
the core's. Events that come within one turn of the loop are handled as one batch.
"""

import asyncio
import contextlib
import logging
import secrets
import signal
import sys
import time

from districomp import systemd
from districomp.alarm import Alarm
from districomp.config import LOOPBACK, Paths, WorkerConfig, parse_coordinator
from districomp.enrolment import Applicant
from districomp.identity import IdentityFolder
from districomp.messages import PROTOCOL_VERSION, HelloWorker
from districomp.model import Blob, item_content, task_text
from districomp.tokens import is_cluster_id
from dworker import machine
from dworker.cache import Cache
from dworker.core import Settings, WorkerCore
from dworker.events import (
    AttemptsEnded,
    Discard,
    Disconnected,
    Effects,
    Events,
    Exit,
    Look,
    Looked,
    Reset,
    SendMessage,
    Shutdown,
    StartAttempts,
    StopAttempts,
    TakeBack,
    Upload,
    Uploaded,
    UseData,
)
from dworker.folder import StateFolder
from dworker.grants import Place
from dworker.link import Link
from dworker.runners import limits
from dworker.runners.command import CommandRunner
from dworker.runners.environment import installed
from dworker.runners.host import Host
from dworker.runners.spawn import can_queue
from dworker.runners.stream import StreamRunner
from dworker.search import Search
from dworker.trust import Trust, Ways

log = logging.getLogger(__name__)


class Daemon:
    """`dworker`. To be made in a running event loop."""

    def __init__(self, config: WorkerConfig, folder: StateFolder, paths: Paths) -> None:
        self._config = config
        slots = config.slots or machine.cpus()
        loop = self._loop = asyncio.get_running_loop()
        self._inbox: list[Events] = []
        self._turn_is_due = False
        self._alarm = Alarm(self._time_is_up, time.monotonic)
        self._stopped: asyncio.Future[None] = loop.create_future()
        limits.raise_own()
        self._core = WorkerCore(
            Settings(slots, time.time_ns() // 1000, limits.isolation(), limits.lacking(), can_queue())
        )
        self._link = self._make_link(folder, slots, paths)
        self._cache = Cache(folder.path, self._link.grants)
        self._host = Host(folder.path, slots, self._cache, self.post)
        self._commands = CommandRunner(self._host)
        self._streams = StreamRunner(self._host)
        log.info("worker %s with %d slots, folder %s", config.name, slots, folder.path)

    def _make_link(self, folder: StateFolder, slots: int, paths: Paths) -> Link:
        """Who we are, where to go, and what the two make."""
        config = self._config
        hello = HelloWorker(
            version=PROTOCOL_VERSION,
            # An id is checked here, by what its authority has signed; a name only the coordinator can tell.
            cluster="" if is_cluster_id(config.cluster) and not config.insecure else config.cluster,
            worker=folder.worker_id(),
            name=config.name,
            slots=slots,
            machine=machine.describe(config.labels),
            process=secrets.randbits(40),
        )
        alone = config.insecure and not config.insecure_network
        search = Search(
            parse_coordinator(config.coordinator) if config.coordinator else None,
            config.discovery.interfaces or ([LOOPBACK] if alone else None),
        )
        trust = None
        if config.insecure:
            log.warning("insecure: connections are neither encrypted nor authenticated")
        else:
            ways = Ways(config.token_file, paths.control_socket, config.cluster)
            applicant = Applicant("worker", hello.worker, config.name, slots, hello.machine)
            trust = Trust(IdentityFolder(folder.path / "identity"), ways, search, applicant)
        return Link(hello, search, trust, post=self.post, place=self._use_place, any_network=not alone)

    def _use_place(self, place: Place) -> None:
        self._cache.use(place)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, and then until everything is handed back; a second one does not wait for that."""
        self._heed_signals()
        link = asyncio.create_task(self._link.run())
        alive = asyncio.create_task(self._keep_systemd_alive())
        systemd.ready("looking for a coordinator")
        try:
            await asyncio.wait({link, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not link.done():
                link.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await link
            if not self._stopped.cancelled() and self._stopped.done():
                self._stopped.result()
        finally:
            alive.cancel()
            self._alarm.cancel_timer()
            self._streams.close()
            self._cache.close()
            await self._host.close()

    def _heed_signals(self) -> None:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if sys.platform == "win32":
            numbers.append(signal.SIGBREAK)  # Ctrl+Break, and the console's window being closed
        for number in numbers:
            try:
                self._loop.add_signal_handler(number, self._told_to_stop)
            except NotImplementedError:  # not a Unix
                signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self._told_to_stop))

    def _told_to_stop(self) -> None:
        if self._core.stopping:
            log.warning("told to stop again: not waiting any longer")
            self._stop()
            return
        log.info("stopping: ending %d tasks and handing them back", self._core.running)
        systemd.stopping("handing tasks back")
        self.post(Shutdown())

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    # ---- the loop ----

    def post(self, event: Events) -> None:
        """An event for the core, which gets it in the next turn of the loop with all others of this one."""
        self._inbox.append(event)
        if not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """One batch through the core. A bug in here ends the daemon: systemd starts it again, the coordinator has all that counts."""
        self._turn_is_due = False
        batch, self._inbox = self._inbox, []
        try:
            now = time.monotonic()
            effects = self._core.handle_batch(batch, now)
            effects += self._core.tick(now)
            for effect in effects:
                self._carry_out(effect)
            self._alarm.set(self._core.deadline())
        except Exception as error:
            if not self._stopped.done():
                self._stopped.set_exception(error)
            raise
        for event in batch:
            self._note(event)

    def _time_is_up(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self._turn()

    def _carry_out(self, effect: Effects) -> None:
        match effect:
            case SendMessage():
                self._link.send(effect.message)
            case StartAttempts():
                self._note_needs(effect)
                runner = self._commands if effect.definition.runner == "command" else self._streams
                runner.start(effect)
            case StopAttempts():
                self._commands.stop(effect)
                self._streams.stop(effect)
            case TakeBack():
                self._commands.take_back(effect)
                self._streams.take_back(effect)
            case Upload():
                path = self._host.spooled[effect.lease]
                self._cache.upload(effect.lease, path, effect.blob, lambda lease: self.post(Uploaded(lease)))
            case Discard():
                self._cache.give_up(effect.leases)
                self._host.discard(effect.leases)
            case UseData():
                self._link.use_data(effect.url)
            case Look():
                self._look(effect.programs)
            case Reset():
                self._link.reset(effect.code, effect.text)
            case Exit():
                self._stop()

    def _note_needs(self, effect: StartAttempts) -> None:
        """Which leases will have what to fetch: the coordinator gives rights to leases alone."""
        grants = self._link.grants
        if effect.definition.bundle:
            grants.needed(f"/bundles/{effect.definition.bundle}", effect.leases[0])
        for lease, index, item in zip(effect.leases, effect.indexes, effect.items, strict=False):
            # First what costs little: nearly every item is bytes, and there may be 100,000 a second.
            if type(item) is not bytes and isinstance(item_content(item), Blob):
                grants.needed(f"/tasks/{task_text(effect.job, index)}", lease)

    def _look(self, programs: list[str]) -> None:
        """In a thread: a folder of PATH may lie on a disk that is asleep."""
        looking = self._loop.run_in_executor(self._host.lookers, installed, programs, self._host.base_env["PATH"])

        def looked(found: "asyncio.Future[list[str]]") -> None:
            if not found.cancelled():
                self.post(Looked(programs, found.result()))

        looking.add_done_callback(looked)

    # ---- for people ----

    def _note(self, event: Events) -> None:
        match event:
            case Disconnected():
                systemd.status(f"looking for the coordinator; {self._core.running} slots are busy")
            case AttemptsEnded() if event.reasons and log.isEnabledFor(logging.DEBUG):
                for lease, reason in zip(event.leases, event.reasons, strict=True):
                    log.debug("slot %d, lease %d: %s", event.slot, lease, reason)
            case _:
                pass

    async def _keep_systemd_alive(self) -> None:
        interval_s = systemd.watchdog_interval_s()
        while interval_s is not None:
            systemd.watchdog()
            await asyncio.sleep(interval_s)
