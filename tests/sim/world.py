"""One run: a world drawn from a seed, a phase of faults, a phase of healing, and the verdict."""

import gc
from random import Random
from typing import Final

import msgspec

from districomp.model import STATE_NAMES
from tests.sim.administrator import Administrator
from tests.sim.chaos import Chaos
from tests.sim.client import Client
from tests.sim.coordinator import Coordinator
from tests.sim.faults import Tally, draw_plan, draw_rates
from tests.sim.loop import Loop
from tests.sim.network import Network
from tests.sim.oracle import Oracle
from tests.sim.profiles import Profile, draw_profiles, stretched
from tests.sim.promise import promise
from tests.sim.stage import Stage
from tests.sim.submission import Submission, draw_extra, draw_submissions
from tests.sim.worker import Host

MANY: Final = 500
"""Above so many workers leases are as long as by default, so that heartbeats do not drown everything else."""
LATEST_S: Final = 400.0
"""How long the first phase may go on, beyond its span, for a kind of which there was none."""
LATE: Final = 1.2
"""The first phase ends after so many spans, whatever is left of the plan, once there was some of each kind."""
CALM_LEASES: Final = 6.0
"""So many leases after the healing every silence of before is over."""
MORE_S: Final = 4.0
STRETCH_MAX: Final = 2.0
CLIENT_COUNT: Final = 3
CERTIFICATE_LEASES: Final = (1.0, 5.0)
"""How many leases long a certificate is good: not much longer than some of what goes wrong."""


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
        self.seed, self.random = seed, Random(seed)
        lease_s = 15.0 if workers > MANY else self.random.choice((3.0, 5.0, 15.0))
        self.span_s = lease_s * self.random.uniform(3.0, 6.0)
        self._more_at = self.span_s
        profiles, submissions, slots = self._draw_work(workers, tasks)
        size = workers + tasks
        self.stage = stage = self._make_stage(lease_s, profiles, min(1.0, 2000 / size))
        self.loop, self.oracle = stage.loop, stage.oracle
        self.oracle.submissions = {submission.request_id: submission for submission in submissions}
        self.coordinator = Coordinator(stage, 1 if size < 2000 else size // 50)
        stage.network.listener = self.coordinator
        self.hosts = [Host(stage, self.coordinator, f"worker{k}", count) for k, count in enumerate(slots)]
        count = min(CLIENT_COUNT, len(submissions))
        self.clients = [Client(stage, f"user{k}", submissions[k::count]) for k in range(count)]
        self.administrator = Administrator(stage)
        self.chaos = Chaos(stage, self.coordinator, self.hosts, self.clients, self.administrator)
        self.chaos.follow(draw_plan(self.random, workers, self.span_s))
        self.coordinator.start()
        self.administrator.start([host.papers for host in self.hosts])
        for host in self.hosts:
            self.loop.at(self.random.uniform(0.0, 0.1 * self.span_s), host.start)

    def _make_stage(self, lease_s: float, profiles: dict[str, Profile], check_rate: float) -> Stage:
        loop, tally = Loop(), Tally()
        rates = draw_rates(self.random, lease_s)
        network = Network(loop, self.random, rates, tally)
        certificate_s = lease_s * self.random.uniform(*CERTIFICATE_LEASES)
        oracle = Oracle(tally)
        return Stage(loop, self.random, rates, tally, network, oracle, profiles, lease_s, certificate_s, check_rate)

    def _draw_work(self, workers: int, tasks: int) -> tuple[dict[str, Profile], list[Submission], list[int]]:
        """Kinds of tasks, jobs, and slots of each worker; the tasks take so long that the workers are busy in the first phase."""
        random = self.random
        profiles = draw_profiles(random)
        submissions = draw_submissions(random, tasks, 0.8 * self.span_s, list(profiles))
        slots = [random.randint(1, 4) for _ in range(workers)]
        work_s = sum(submission.count * profiles[submission.definition].mean_s for submission in submissions)
        factor = random.uniform(0.3, 1.2) * sum(slots) * self.span_s / work_s
        return stretched(profiles, min(STRETCH_MAX, factor)), submissions, slots

    def run(self) -> Summary:
        """Both phases; BrokenPromiseError, or whatever the cores raise, if something is wrong."""
        self.loop.run(self.span_s + LATEST_S, self._is_first_phase_over, 1.0)
        healed = self.loop.now
        self.oracle.is_healed = True
        self.chaos.heal()
        self.loop.at(healed + CALM_LEASES * self.stage.lease_s, self._is_calm_now)
        in_time = self.loop.run(healed + self._patience_s(), self._is_all_done, 1.0)
        if not in_time:
            raise AssertionError(f"{self.loop.now - healed:.0f} s after everything was healed: {self._left()}")
        self._check_at_end()
        return self._summary(healed)

    def _is_calm_now(self) -> None:
        self.oracle.is_calm = True

    def _is_first_phase_over(self) -> bool:
        if self.loop.now < self.span_s:
            return False
        if (self.chaos.is_spent() or self.loop.now >= LATE * self.span_s) and not self.stage.tally.missing():
            return True
        if self.loop.now >= self._more_at:
            self._more_at = self.loop.now + MORE_S
            self._want_more()
        return False

    def _want_more(self) -> None:
        """There are faults left, and perhaps nothing to break: one more job."""
        count = 4 + len(self.hosts) // 10
        extra = draw_extra(self.random, len(self.oracle.submissions), count, self.loop.now)
        self.oracle.submissions[extra.request_id] = extra
        client = self.clients[len(self.oracle.submissions) % len(self.clients)]
        if not self.stage.tally.counts["submission sent again"]:
            client.cuts_wanted += 1
        client.want(extra)
        if not self.stage.tally.counts["certificate ended"]:
            self.random.choice(self.hosts).is_forgetful = True

    def _patience_s(self) -> float:
        """How long the healed world may take: silences, backoffs, and the work, each generously."""
        slots = sum(host.slots for host in self.hosts)
        submissions = self.oracle.submissions.values()
        work_s = sum(
            submission.count * self.stage.profiles[submission.definition].mean_s * 6 for submission in submissions
        )
        return 4 * self.stage.lease_s + 120.0 + 4 * work_s / slots

    def _is_all_done(self) -> bool:
        if not self.oracle.is_calm:
            return False
        if not all(client.is_done() for client in self.clients):
            return False
        process = self.coordinator.process
        return process is not None and not process.core.leased and not any(map(self._has_something, self.hosts))

    @staticmethod
    def _has_something(host: Host) -> bool:
        if host.process is None:
            return True
        core = host.process.core
        return bool(core.unacknowledged or core.running or core.queued)

    def _left(self) -> str:
        left = self.oracle.unfinished()
        left += ["a client without all its results" for client in self.clients if not client.is_done()]
        left += [f"{host.papers.worker} holds something" for host in self.hosts if self._has_something(host)]
        return "; ".join(left[:20]) or "the coordinator has leases that nobody holds"

    def _check_at_end(self) -> None:
        left = self.oracle.unfinished()
        promise(not left, "; ".join(left))
        process = self.coordinator.process
        assert process is not None
        process.core.check()
        assert not process.core.drafts, "submissions of clients that are gone are kept"
        ghosts = [peer for peer in (*process.core.principals, *process.core.trust.pending) if peer not in process.peers]
        assert not ghosts, "connections that are gone are remembered"
        assert not process.core.repeats, "repeated submissions of clients that are gone are kept"
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
            lease_s=self.stage.lease_s,
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
            faults=self.stage.tally.counts,
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
            print(
                f"to see this again: python -m tests.sim --seed {seed} --workers {workers} --tasks {tasks}", flush=True
            )
    return summary
