"""One run: a world drawn from a seed, a phase of faults, a phase of healing, and the verdict."""

import gc
from random import Random
from typing import Final

import msgspec

from districomp.model import STATE_NAMES
from tests.sim.chaos import Chaos
from tests.sim.client import Client
from tests.sim.coordinator import Coordinator
from tests.sim.faults import Tally, draw_plan, draw_rates
from tests.sim.loop import Loop
from tests.sim.network import Network
from tests.sim.oracle import Oracle, promise
from tests.sim.profiles import draw_profiles
from tests.sim.submission import draw_extra, draw_submissions
from tests.sim.worker import Host, Surroundings

MANY: Final = 500
"""Above so many workers leases are as long as by default, so that heartbeats do not drown everything else."""
LATEST_S: Final = 400.0
"""How long the first phase may go on, beyond its span, for faults that found nothing to break."""
CLIENT_COUNT: Final = 3


class Summary(msgspec.Struct):
    """What a run did: the same for the same seed, whatever the machine."""

    seed: int
    workers: int
    slots: int
    tasks: int
    jobs: int
    lease_s: float
    virtual_s: float
    healed_after_s: float
    events: int
    commits: int
    epochs: int
    attempts: int
    attempts_lost: int
    retries: int
    refused_reports: int
    tasks_by_state: dict[str, int]
    faults: dict[str, int]


class World:
    """Everything of one run."""

    def __init__(self, seed: int, workers: int, tasks: int) -> None:
        random = Random(seed)
        self.seed, self.random = seed, random
        self.lease_s = 15.0 if workers > MANY else random.choice((3.0, 5.0, 15.0))
        self.span_s = self.lease_s * random.uniform(3.0, 6.0)
        self.loop = Loop()
        self.rates = draw_rates(random, self.lease_s)
        self.tally = Tally()
        self.oracle = Oracle()
        self.profiles = draw_profiles(random, random.choice((0.3, 1.0, 2.0)))
        size = workers + tasks
        self.network = Network(self.loop, random, self.rates, self.tally)
        self.coordinator = Coordinator(
            self.loop, random, self.rates, self.tally, self.oracle, self.lease_s, max(1, size // 500)
        )
        self.coordinator.definitions = {name: profile.definition for name, profile in self.profiles.items()}
        self.network.listener = self.coordinator
        around = Surroundings(
            self.loop,
            random,
            self.rates,
            self.tally,
            self.network,
            self.oracle,
            self.coordinator,
            self.profiles,
            min(1.0, 2000 / size),
        )
        self.hosts = [Host(around, f"worker-{number}", random.randint(1, 4)) for number in range(workers)]
        submissions = draw_submissions(random, tasks, 0.8 * self.span_s, list(self.profiles))
        self.oracle.submissions = {submission.request_id: submission for submission in submissions}
        count = min(CLIENT_COUNT, len(submissions))
        self.clients = [
            Client(self.loop, random, self.network, self.oracle, self.tally, submissions[k::count])
            for k in range(count)
        ]
        self.chaos = Chaos(around, self.hosts, self.clients, draw_plan(random, workers, self.span_s))
        self.coordinator.start()
        for host in self.hosts:
            self.loop.at(random.uniform(0.0, 0.1 * self.span_s), host.start)

    def run(self) -> Summary:
        """Both phases; BrokenPromiseError, or whatever the cores raise, if something is wrong."""
        self.loop.run(self.span_s + LATEST_S, self._is_first_phase_over, 1.0)
        healed = self.loop.now
        self.oracle.is_healed = True
        self.chaos.heal()
        in_time = self.loop.run(healed + self._patience_s(), self._is_all_done, 1.0)
        if not in_time:
            raise AssertionError(f"{self.loop.now - healed:.0f} s after everything was healed: {self._left()}")
        self._check_at_end()
        return self._summary(healed)

    def _is_first_phase_over(self) -> bool:
        if self.chaos.is_spent():
            return self.loop.now >= self.span_s
        if self.loop.now >= self.span_s and all(client.is_done() for client in self.clients):
            self._want_more()
        return False

    def _want_more(self) -> None:
        """There are faults left, and nothing to break: one more job."""
        count = 4 + len(self.hosts) // 10
        extra = draw_extra(self.random, len(self.oracle.submissions), count, self.loop.now)
        self.oracle.submissions[extra.request_id] = extra
        self.clients[0].want(extra)

    def _patience_s(self) -> float:
        """How long the healed world may take: silences, backoffs, and the work, each generously."""
        slots = sum(host.slots for host in self.hosts)
        submissions = self.oracle.submissions.values()
        work_s = sum(submission.count * self.profiles[submission.definition].mean_s * 6 for submission in submissions)
        return 4 * self.lease_s + 120.0 + 4 * work_s / slots

    def _is_all_done(self) -> bool:
        if not all(client.is_done() for client in self.clients):
            return False
        core = self.coordinator.process and self.coordinator.process.core
        return core is not None and not core.leased and not any(self._has_something(host) for host in self.hosts)

    @staticmethod
    def _has_something(host: Host) -> bool:
        core = host.process and host.process.core
        return core is None or bool(core.unacknowledged or core.running or core.queued)

    def _left(self) -> str:
        left = self.oracle.unfinished()
        left += [f"a client without all its results" for client in self.clients if not client.is_done()]
        left += [f"{host.worker} holds something" for host in self.hosts if self._has_something(host)]
        return "; ".join(left[:20]) or "the coordinator has leases that nobody holds"

    def _check_at_end(self) -> None:
        left = self.oracle.unfinished()
        promise(not left, "; ".join(left))
        process = self.coordinator.process
        assert process is not None
        process.core.check()
        self.oracle.compare(process.core)
        for host in self.hosts:
            assert host.process is not None
            host.process.core.check()

    def _summary(self, healed: float) -> Summary:
        process = self.coordinator.process
        assert process is not None
        return Summary(
            seed=self.seed,
            workers=len(self.hosts),
            slots=sum(host.slots for host in self.hosts),
            tasks=sum(submission.count for submission in self.oracle.submissions.values()),
            jobs=len(self.oracle.submissions),
            lease_s=self.lease_s,
            virtual_s=round(self.loop.now, 3),
            healed_after_s=round(healed, 3),
            events=self.loop.steps,
            commits=self.coordinator.journal.commits,
            epochs=self.coordinator.journal.epoch,
            attempts=self.oracle.attempts,
            attempts_lost=self.oracle.attempts_lost,
            retries=self.oracle.retries,
            refused_reports=process.core.refused_reports,
            tasks_by_state=dict(zip(STATE_NAMES, self.oracle.totals(), strict=True)),
            faults=self.tally.counts,
        )


def simulate(seed: int, workers: int, tasks: int) -> Summary:
    """One run; on a failure the line that reproduces it is printed, whatever the failure is."""
    is_sound = False
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        summary = World(seed, workers, tasks).run()
        is_sound = True
    finally:
        if was_enabled:
            gc.enable()
        if not is_sound:
            print(f"to see this again: python -m tests.sim --seed {seed} --workers {workers} --tasks {tasks}", flush=True)
    return summary
