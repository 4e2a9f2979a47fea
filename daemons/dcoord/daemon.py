"""The coordinator's one driver: inbox -> core -> journal -> connections, batch by batch.

Owns the order (commit, then send), degraded mode, and the daemon's start and stop. Decides nothing about
tasks: that is the core's.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from dcoord.blobs import BlobStore
from dcoord.catalog import Catalog, Scan
from dcoord.children import Child
from dcoord.core.core import Core, Settings
from dcoord.core.effects import Close, Effect, ReadJob, ReadPayload, RefusedChanged, Rotate, Send, Sign
from dcoord.core.events import (
    AuthoritiesChanged,
    DefinitionsChanged,
    Degraded,
    Events,
    Gone,
    JobRead,
    PayloadRead,
    Received,
    SpaceLeft,
)
from dcoord.core.records import Record, WorkerRecord
from dcoord.core.rights import may
from dcoord.endpoint import Endpoint, EndpointFile
from dcoord.journal import Journal
from dcoord.journal_thread import JournalThread
from dcoord.listener import Inbox, Listener
from dcoord.sessions import Sessions
from dcoord.trustee import Trustee
from districomp import __version__, clock, systemd
from districomp.addresses import near, reached_url
from districomp.config import LOOPBACK, CoordinatorConfig, Paths
from districomp.discovery import Advertisement
from districomp.errors import JournalError
from districomp.messages import DataAt, HelloWeb, Query, Refused, Results, Watch

if TYPE_CHECKING:
    from dcoord.authority import Authority

log = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_S: Final = 3600.0
UNFINISHED_S: Final = 86400.0
"""What a killed upload left behind is removed after so long; no upload takes a day."""
FORGET_S: Final = 30 * 86400.0
"""So long after the end of its certificate an identity is remembered, and a token after its own."""
HOUSEKEEPING_S: Final = 1.0
"""How often definitions and free space are looked at; a dropped file is live within two of these."""
WEB_START_S: Final = 10.0
"""How long a start waits for the web server before it says that it is ready without it."""
PROBE_S_FIRST: Final = 0.5
PROBE_S_MAX: Final = 10.0


class Daemon:
    """A coordinator from start to stop."""

    def __init__(self, config: CoordinatorConfig, paths: Paths, config_file: Path | None) -> None:
        self._config = config
        self._paths = paths
        self._config_file = config_file
        self._inbox = Inbox()
        self._blobs = BlobStore(paths.coordinator_state / "blobs")
        self._trustee = Trustee(self._open_authority(), lambda: self._listener, self._inbox.put)
        self._listener = Listener(self._inbox, self._blobs, self._trustee.context)
        self._catalog = Catalog(paths.tasks_layers, self._blobs)
        self._scan = Scan()
        self._journal_thread = JournalThread()
        self._catalog_thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._children: list[Child] = []
        self._advertising: Child | None = None
        self._listening = ("", 0)
        self._background: set[asyncio.Task[None]] = set()
        self._web_is_up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._owns_socket = False
        """Whether the control socket is ours to remove: another coordinator's must stay."""
        self._failure: BaseException | None = None
        self._read_error: JournalError | None = None
        self._journal: Journal
        self._core: Core
        self._sessions: Sessions
        self._endpoint: EndpointFile
        self._announced = False

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. DistricompError when it cannot start, or cannot go on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            await self._start()
            await self._drive()
            if self._failure is not None:
                raise self._failure
        finally:
            await self._close()

    # ---- start ----

    def _open_authority(self) -> "Authority | None":
        """Who the coordinator is; None if it is insecure. ConfigError."""
        if self._config.insecure:
            return None
        from dcoord.authority import Authority

        folder = self._paths.coordinator_state / "trust"
        return Authority.open(folder, self._config.name, self._config.certificates.lifetime_s)

    async def _start(self) -> None:
        config = self._config
        await self._listener.listen_locally(self._paths.control_socket)
        self._owns_socket = True
        self._journal = await self._journal_thread.run(lambda: Journal.open(config.journal.path))
        await self._journal_thread.run(lambda: self._journal.forget(time.time() - FORGET_S))
        restored = await self._journal_thread.run(self._journal.restore)
        if self._trustee.clusters:
            restored.cluster = self._trustee.clusters[0]
        cluster = restored.cluster
        settings = Settings(
            cluster,
            config.name,
            config.lease_s,
            config.insecure,
            self._trustee.grant_key,
            config.certificates.lifetime_s,
        )
        self._core = Core(settings, restored, clock.now())
        self._sessions = Sessions(lambda: self._core, config.journal.path, self._spawn)
        host, port = self._listening = await self._listener.listen(config.listen.address, config.listen.port)
        self._endpoint = EndpointFile(
            self._paths.endpoint, Endpoint(cluster, config.name, os.getpid(), (near(host), port), "", "", 0)
        )
        await self._scan_definitions()
        started: list[Events] = [SpaceLeft(self._journal.free_bytes())]
        if self._trustee.clusters:
            started.append(self._trustee.event())
        await self._step(started)
        self._start_children()
        self._spawn(self._keep_house())
        self._spawn(self._lengthen_log())
        self._spawn(self._announce())
        log.info("districomp %s, cluster %s (%s), epoch %d", __version__, config.name, cluster, restored.epoch)
        if config.insecure:
            who = "whoever is on the network" if config.insecure_network else "whoever can use this machine"
            log.warning("insecure: no TLS and no authentication; %s can run tasks", who)
        unended = len(self._core.active)
        if unended:
            log.info("going on with %d %s of before", unended, "job" if unended == 1 else "jobs")

    def _advertisement(self) -> bytes:
        """What the child advertises: every id that somebody may look for."""
        config = self._config
        interfaces = config.discovery.interfaces or None
        cluster, *former = self._trustee.clusters or [self._core.settings.cluster]
        what = Advertisement(cluster, config.name, *self._listening, interfaces, former=former)
        return msgspec.json.encode(what) + b"\n"

    def _start_children(self) -> None:
        config = self._config
        if config.web.spawn is True or (config.web.spawn == "auto" and not systemd.is_supervised()):
            argv = [sys.executable, "-m", "dcoord.web", "--parent-pipe"]
            if self._config_file is not None:
                argv += ["--config", str(self._config_file.absolute())]
            self._children.append(Child("dcoord-web", argv))
        else:
            self._web_is_up.set()
        if config.advertise:
            argv = [sys.executable, "-m", "dcoord.advertise"]
            self._advertising = Child("dcoord-mdns", argv, self._advertisement())
            self._children.append(self._advertising)
        for child in self._children:
            child.start()

    async def _announce(self) -> None:
        """Say ready, once the web server has its ports."""
        try:
            async with asyncio.timeout(WEB_START_S):
                await self._web_is_up.wait()
        except TimeoutError:
            log.warning("the web server is not up after %g s; going on without it", WEB_START_S)
        self._announced = True
        self._endpoint.write()
        endpoint = self._endpoint.endpoint
        host, port = endpoint.control
        log.info("ready: control %s port %d, page %s", host, port, endpoint.web or "not up yet")
        systemd.ready(f"page {endpoint.web}" if endpoint.web else "no web server yet")

    # ---- the loop ----

    async def _drive(self) -> None:
        while not self._stopping.is_set():
            await self._step(await self._inbox.next_batch(self._core.deadline()))
            if self._read_error is not None:
                error, self._read_error = self._read_error, None
                await self._degrade(error)

    async def _step(self, batch: Sequence[Events]) -> None:
        """One batch through the core: nothing is sent before its records are on disk."""
        core, now = self._core, clock.now()
        for event in batch:
            if isinstance(event, Gone):
                # Here, because it is so whether or not the batch can be written.
                self._sessions.forget(event.peer)
        effects = core.handle_batch(batch, now)
        effects += core.tick(now)
        records = [effect for effect in effects if isinstance(effect, Record)]
        if records:
            try:
                await self._journal_thread.commit(self._journal, records)
            except JournalError as error:
                await self._degrade(error)
                return
            self._log_workers(records)
        with self._listener.outbox:
            for effect in effects:
                self._carry_out(effect)
            self._answer(batch, records)

    def _carry_out(self, effect: Effect | Record) -> None:
        if isinstance(effect, Send):
            connection = self._listener.connections.get(effect.peer)
            if connection is not None:
                connection.send(effect.message)
        elif isinstance(effect, Close):
            connection = self._listener.connections.get(effect.peer)
            if connection is not None:
                self._listener.refuse(connection, effect.code, effect.text)
        elif isinstance(effect, Sign):
            self._trustee.sign(effect)
        elif isinstance(effect, Rotate):
            self._spawn(self._trustee.rotate(effect))
        elif isinstance(effect, RefusedChanged):
            self._tell_web()
        elif isinstance(effect, ReadPayload):
            self._spawn(self._read_payload(effect))
        elif isinstance(effect, ReadJob):
            self._spawn(self._read_job(effect))

    def _answer(self, batch: Sequence[Events], records: list[Record]) -> None:
        """Serve the questions of a batch, and those who wait for what it changed."""
        connections = self._listener.connections
        self._sessions.after_batch(records)
        for peer, request, job in self._core.answers:
            if peer in connections:
                self._sessions.job_reply(connections[peer], request, job)
        self._core.answers.clear()
        for event in batch:
            if isinstance(event, Received):
                message, connection = event.message, connections.get(event.peer)
                if connection is None:
                    continue
                principal = self._core.principals.get(event.peer)
                if principal is None or not may(principal, message):
                    continue
                if isinstance(message, Query | Watch | Results):
                    self._sessions.on_message(connection, principal, message)
                elif isinstance(message, HelloWeb):
                    self._web_moved(message)
            elif isinstance(event, AuthoritiesChanged):
                self._authorities_moved()

    async def _read_payload(self, effect: ReadPayload) -> None:
        try:
            items = await self._journal_thread.run(lambda: self._journal.read_payload(effect.job, effect.first))
        except JournalError as error:
            # Only the loop may replace the core, between two batches.
            self._read_error = error
            self._inbox.wake()
            return
        self._inbox.put(PayloadRead(effect.job, effect.first, items))

    async def _read_job(self, effect: ReadJob) -> None:
        try:
            restored = await self._sessions.read_job(effect.job)
        except JournalError as error:
            connection = self._listener.connections.get(effect.peer)
            if connection is not None:
                connection.send(Refused(effect.request, "degraded", str(error)))
            return
        self._inbox.put(JobRead(effect, restored))

    def _web_moved(self, hello: HelloWeb) -> None:
        """dcoord-web says where it serves: tell workers and clients, and the endpoint file."""
        self._core.data_url = hello.data_url
        for connection in self._listener.connections.values():
            if self._listener.is_member(connection):
                connection.send(DataAt(hello.data_url))
        self._tell_web()
        endpoint = self._endpoint.endpoint
        endpoint.web, endpoint.data = (reached_url(url, LOOPBACK) for url in (hello.web_url, hello.data_url))
        endpoint.web_pid = hello.pid
        if self._announced:
            self._endpoint.write()
            log.info("page %s", endpoint.web)
            systemd.status(f"page {endpoint.web}")
        self._web_is_up.set()

    def _tell_web(self) -> None:
        """dcoord-web checks certificates and grants itself: give it what it needs for that."""
        trust = self._trustee.web_trust(self._core.trust.refused())
        for connection in self._listener.connections.values():
            if self._listener.is_web(connection):
                connection.send(trust)

    def _authorities_moved(self) -> None:
        """There are other authorities than before: everybody who is here is told, and who looks for us finds us."""
        settings = self._core.settings
        self._tell_web()
        connections = self._listener.connections
        # Those whom the core has welcomed: to others this would come before their Welcome.
        certified = [peer for peer, principal in self._core.principals.items() if principal.authority]
        self._trustee.announce(settings.cluster, settings.name, [connections[p] for p in certified if p in connections])
        endpoint = self._endpoint.endpoint
        if endpoint.cluster != settings.cluster:
            endpoint.cluster = settings.cluster
            if self._announced:
                self._endpoint.write()
        if self._advertising is not None:
            self._advertising.renew(self._advertisement())

    # ---- a journal that cannot be written ----

    async def _degrade(self, error: JournalError) -> None:
        """Nothing of the failed batch was sent: start anew from the journal, refuse work, and try until it can be written."""
        if self._core.degraded:
            return
        reason = f"the coordinator cannot write its journal: {error}; it goes on by itself when that is mended"
        log.error("%s", reason)
        old = self._core
        restored = await self._journal_thread.run(self._journal.restore)
        self._core = Core(old.settings, restored, clock.now(), next_lease=old.next_lease)
        self._core.data_url = old.data_url
        anew: list[Events] = [DefinitionsChanged(self._scan.definitions), Degraded(reason)]
        if self._trustee.clusters:
            anew.append(self._trustee.event())
        await self._step(anew)
        # Everybody comes back by themselves: workers with what they hold, clients with what they wait for.
        self._listener.close_all("degraded", reason)
        self._spawn(self._heal())

    async def _heal(self) -> None:
        wait_s = PROBE_S_FIRST
        while True:
            await asyncio.sleep(wait_s)
            try:
                await self._journal_thread.run(self._journal.probe)
            except JournalError as error:
                log.debug("still: %s", error)
                wait_s = min(PROBE_S_MAX, wait_s * 2)
            else:
                log.info("the journal can be written again")
                self._inbox.put(Degraded(""))
                return

    # ---- housekeeping ----

    async def _keep_house(self) -> None:
        interval_s = systemd.watchdog_interval_s()
        watchdog_due = sweep_due = 0.0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S if interval_s is None else min(HOUSEKEEPING_S, interval_s))
            if interval_s is not None and clock.now() >= watchdog_due:
                systemd.watchdog()
                watchdog_due = clock.now() + interval_s
            with contextlib.suppress(JournalError):
                free_bytes = self._journal.free_bytes()
                if free_bytes != self._core.free_bytes:
                    self._inbox.put(SpaceLeft(free_bytes))
            await self._scan_definitions()
            self._trustee.expire()
            if self._trustee.web_is_due():
                self._tell_web()
            if clock.now() >= sweep_due:
                sweep_due = clock.now() + SWEEP_S
                await self._in_catalog_thread(lambda: self._blobs.sweep_unfinished(UNFINISHED_S))

    async def _lengthen_log(self) -> None:
        """Not at once: a start has better things to do, and a coordinator that is only asked something needs no long log."""
        await asyncio.sleep(HOUSEKEEPING_S)
        while await self._journal_thread.run(self._journal.lengthen_log):
            pass

    async def _scan_definitions(self) -> None:
        scan = await self._in_catalog_thread(self._catalog.scan)
        if scan is self._scan:
            return
        self._scan = scan
        for line in scan.news:
            log.info("%s", line)
        self._sessions.definitions = scan.documents
        self._inbox.put(DefinitionsChanged(scan.definitions))

    def _log_workers(self, records: list[Record]) -> None:
        for record in records:
            if isinstance(record, WorkerRecord):
                worker = self._core.fleet.by_id.get(record.worker)
                if record.present and worker is not None:
                    log.info("worker %s joined from %s with %d slots", record.name, worker.address, worker.slots)
                elif not record.present:
                    identity = self._core.trust.identities.get(record.worker)
                    is_revoked = identity is not None and identity.revoked
                    why = "revoked" if is_revoked else "lost: silent for a whole lease"
                    log.warning("worker %s is %s", record.name, why)

    # ---- stop ----

    def _stop(self) -> None:
        self._stopping.set()
        self._inbox.wake()

    async def _close(self) -> None:
        systemd.stopping()
        if hasattr(self, "_endpoint"):
            self._endpoint.remove()
        self._listener.stop_listening()
        self._listener.close_all("stopping", "the coordinator stops; come back when it runs again")
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(child.close() for child in self._children))
        if hasattr(self, "_sessions"):
            await self._sessions.close()
        if hasattr(self, "_journal"):
            await self._journal_thread.run(self._journal.close)
        if self._owns_socket:
            self._paths.control_socket.unlink(missing_ok=True)
        self._journal_thread.close()
        self._catalog_thread.shutdown()

    # ---- inside ----

    async def _in_catalog_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._catalog_thread, work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the loop; if it ends by a bug, so does the daemon, and systemd starts it again."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._stop()
