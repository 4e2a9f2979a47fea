"""Injects the planned faults. A fault that does not fit at its time (nothing to cut, nobody busy) is tried again soon.

Knows how each kind is done to the simulated machines; when and how often is the plan's.
"""

from collections.abc import Callable
from typing import Final

from dcoord.core.events import DefinitionsChanged, SpaceLeft
from tests.sim.administrator import Administrator
from tests.sim.client import Client
from tests.sim.coordinator import FULL_BYTES, ROOMY_BYTES, Coordinator
from tests.sim.faults import PER_WORKER
from tests.sim.profiles import edited
from tests.sim.stage import Stage
from tests.sim.worker import Host, WorkerProcess

AGAIN_S_FIRST: Final = 0.2
AGAIN_S_MAX: Final = 2.0
ARMED: Final = ("coordinator crash before commit", "coordinator crash before send", "disk full")
"""Faults that wait for the next commit; counted when they strike."""
COUNTED_LATER: Final = ("late result", "client cut", "worker revoked", "token revoked", "authority rotated")
"""Counted when the result comes, when the submission is cut, and when it is on disk."""


class Chaos:
    """The hand that breaks things."""

    def __init__(
        self,
        stage: Stage,
        coordinator: Coordinator,
        hosts: list[Host],
        clients: list[Client],
        administrator: Administrator,
    ) -> None:
        self.stage = stage
        self.loop = stage.loop
        self.random = stage.random
        self.tally = stage.tally
        self.lease_s = stage.lease_s
        self.coordinator = coordinator
        self.hosts = hosts
        self.clients = clients
        self.administrator = administrator
        self.doubles: list[Host] = []
        self.left = 0
        self.is_over = False
        self._kinds: dict[str, Callable[[], bool]] = {
            "coordinator crash": self._crash_coordinator,
            "slow disk": self._slow_disk,
            "no space": self._no_space,
            "duplicated worker id": self._double,
            "coordinator clock jump": self._jump_coordinator,
            "client cut": self._cut_client,
            "definition edited": self._edit,
            "worker revoked": self._revoke,
            "token revoked": self._revoke_token,
            "authority rotated": self._rotate,
        }
        self._worker_kinds: dict[str, Callable[[WorkerProcess], bool]] = {
            "cut connection": self._cut,
            "half-open, coordinator unaware": self._cut_unseen_there,
            "half-open, worker unaware": self._cut_unseen_here,
            "late result": self._keep_away,
            "worker crash": self._crash,
            "worker restart": self._restart,
            "worker asleep": self._sleep,
            "worker clock jump": self._jump,
            "long delay": self._delay,
            "hung attempt": lambda process: process.runner.hang(),
            "renewal forgotten": self._forget,
        }

    def follow(self, plan: list[tuple[float, str]]) -> None:
        """Inject these, each at its time or soon after."""
        self.left += len(plan)
        for time, kind in plan:
            self.loop.at(time, self._inject, kind)

    def is_spent(self) -> bool:
        """Whether every planned fault has been."""
        return self.left == 0 and not self.coordinator.armed

    def _inject(self, kind: str, again_s: float = AGAIN_S_FIRST) -> None:
        if self.is_over:
            return
        if kind in ARMED:
            self.coordinator.armed.append(kind)
        elif not (self._on_some_worker(kind) if kind in PER_WORKER else self._kinds[kind]()):
            self.loop.after(again_s, self._inject, kind, min(AGAIN_S_MAX, 1.5 * again_s))
            return
        if kind not in ARMED and kind not in COUNTED_LATER:
            self.tally.count(kind)
        self.left -= 1

    def _on_some_worker(self, kind: str) -> bool:
        process = self.random.choice(self.hosts).process
        return process is not None and self._worker_kinds[kind](process)

    # ---- workers ----

    def _cut(self, process: WorkerProcess) -> bool:
        return self._cut_seen(process, here=True, there=True)

    def _cut_unseen_there(self, process: WorkerProcess) -> bool:
        return self._cut_seen(process, here=True, there=False)

    def _cut_unseen_here(self, process: WorkerProcess) -> bool:
        return self._cut_seen(process, here=False, there=True)

    def _cut_seen(self, process: WorkerProcess, *, here: bool, there: bool) -> bool:
        end = process.end
        if end is None or end.is_cut or not end.is_open:
            return False
        end.cut(is_seen_here=here, is_seen_there=there)
        if self.random.random() < 0.3:
            process.away_until = self.loop.now + self.random.uniform(0.0, 2.0 * self.lease_s)
        return True

    def _keep_away(self, process: WorkerProcess) -> bool:
        """Gone from the network while it works, until it has something to tell: in time, or too late."""
        if not process.runner.busy or not self._cut(process):
            return False
        process.stays_away_for_report = True
        process.away_until = self.loop.now + self.random.uniform(0.0, 1.5 * self.lease_s)
        return True

    def _crash(self, process: WorkerProcess) -> bool:
        process.host.crash(self.random.uniform(0.05, 2.0 * self.lease_s))
        return True

    def _restart(self, process: WorkerProcess) -> bool:
        if process.core.stopping:
            return False
        process.shut_down()
        return True

    def _sleep(self, process: WorkerProcess) -> bool:
        process.asleep_until = self.loop.now + self.random.uniform(0.1, 2.0 * self.lease_s)
        return True

    def _jump(self, process: WorkerProcess) -> bool:
        """As after a suspend. Only forward: a worker reads a clock that never goes back."""
        process.host.clock.offset_s += self.random.choice((0.3, 3.0, 30.0)) * self.lease_s
        process.arm()
        return True

    def _delay(self, process: WorkerProcess) -> bool:
        end = process.end
        if end is None:
            return False
        seconds = self.random.uniform(0.1, 2.0) * self.lease_s
        (end if self.random.random() < 0.5 else end.other).hold(seconds)
        return True

    def _double(self) -> bool:
        """A second machine with the id of another, for a while."""
        host = self.random.choice(self.hosts)
        if host.process is None:
            return False
        if not host.papers.certificate:
            return False
        double = Host(self.stage, self.coordinator, host.papers.worker, self.random.randint(1, 4))
        double.papers.certificate = host.papers.certificate
        self.doubles.append(double)
        self.stage.oracle.doubled[host.papers.worker] = None
        double.start()
        self.loop.after(self.random.uniform(0.2, 2.0) * self.lease_s, self._retire, double)
        return True

    def _retire(self, double: Host) -> None:
        double.is_retired = True
        double.crash(0.0)

    # ---- the coordinator ----

    def _crash_coordinator(self) -> bool:
        if self.coordinator.process is None:
            return False
        self.coordinator.crash()
        return True

    def _slow_disk(self) -> bool:
        self.coordinator.slow_until = self.loop.now + self.random.uniform(1.0, 10.0)
        return True

    def _no_space(self) -> bool:
        seconds = self.random.uniform(0.5, self.lease_s)
        self.coordinator.short_until = self.loop.now + seconds
        self.coordinator.feed(SpaceLeft(FULL_BYTES))
        self.loop.after(seconds, self._make_room)
        return True

    def _make_room(self) -> None:
        if self.loop.now >= self.coordinator.short_until:
            self.coordinator.feed(SpaceLeft(ROOMY_BYTES))

    def _jump_coordinator(self) -> bool:
        self.coordinator.jump_clock(self.random.choice((-0.5, -0.05, 0.05, 0.5)) * self.lease_s)
        return True

    def _edit(self) -> bool:
        name = self.random.choice(list(self.coordinator.definitions))
        self.coordinator.definitions[name] = edited(
            self.coordinator.definitions[name], self.tally.counts["definition edited"]
        )
        self.coordinator.feed(DefinitionsChanged(dict(self.coordinator.definitions)))
        return True

    def _cut_client(self) -> bool:
        self.random.choice(self.clients).cuts_wanted += 1
        return True

    # ---- who belongs to the cluster ----

    def _forget(self, process: WorkerProcess) -> bool:
        """Its certificate will end while it works."""
        if process.host.is_forgetful or not process.is_welcome:
            return False
        process.host.is_forgetful = True
        return True

    def _revoke(self) -> bool:
        """Rather a worker that has something to lose; half of the time while it is away, to come back with its reports."""
        host = self.random.choice(self.hosts)
        process = host.process
        if process is None or not host.papers.certificate or not process.runner.busy:
            return False
        if self.random.random() < 0.5:
            self._keep_away(process)
        self.administrator.revoke(host.papers.worker)
        return True

    def _revoke_token(self) -> bool:
        if not self.administrator.tokens:
            return False
        self.administrator.revoke_token(self.random.choice(self.administrator.tokens))
        return True

    def _rotate(self) -> bool:
        self.administrator.rotate(self.random.choice((0.0, 0.1, 1.0)) * self.lease_s)
        return True

    # ---- the end of it ----

    def heal(self) -> None:
        """No fault happens any more, and what is broken comes back."""
        self.is_over = True
        for client in self.clients:
            client.cuts_wanted = 0
        coordinator = self.coordinator
        coordinator.armed.clear()
        coordinator.slow_until = coordinator.full_until = coordinator.short_until = 0.0
        self._make_room()
        self.stage.rates.heal()
        coordinator.start()
        for double in self.doubles:
            self._retire(double)
        for host in self.hosts:
            host.start()
            process = host.process
            assert process is not None
            process.away_until = 0.0
            process.stays_away_for_report = False
            process.remember()
            process.runner.limit()
