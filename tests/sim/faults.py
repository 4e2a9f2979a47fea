"""Which faults there are, how often this seed wants each, and how many there were. Injects nothing itself."""

from random import Random
from typing import Final

import msgspec

PER_WORKER: Final = {
    "cut connection": (0.1, 1.0),
    "half-open, coordinator unaware": (0.05, 0.5),
    "half-open, worker unaware": (0.05, 0.5),
    "late result": (0.05, 0.4),
    "worker crash": (0.05, 0.4),
    "worker restart": (0.03, 0.3),
    "worker asleep": (0.03, 0.2),
    "worker clock jump": (0.03, 0.2),
    "long delay": (0.05, 0.5),
    "hung attempt": (0.03, 0.2),
    "renewal forgotten": (0.1, 0.5),
}
"""Faults of a worker, and between how many and how many there are of each in a run, for each worker."""

PER_RUN: Final = {
    "coordinator crash before commit": (1, 3),
    "coordinator crash before send": (1, 3),
    "coordinator crash": (1, 2),
    "disk full": (1, 3),
    "slow disk": (1, 3),
    "no space": (1, 2),
    "duplicated worker id": (1, 3),
    "coordinator clock jump": (1, 3),
    "client cut": (1, 4),
    "definition edited": (1, 2),
    "worker revoked": (1, 3),
    "token revoked": (1, 1),
    "authority rotated": (1, 1),
}
"""Faults of the whole cluster, and how many there are of each in a run."""

EMERGENT: Final = (
    "split read",
    "failed attempt",
    "cancelled job",
    "cancelled task",
    "submission sent again",
    "worker enrolled",
    "pending worker",
    "certificate renewed",
    "certificate ended",
)
"""What comes of rates and of the clients' plans."""


class Rates(msgspec.Struct):
    """How the world is while it is not healed; drawn once a run."""

    latency_s: float
    split: float
    spike: float
    """How often a write takes up to `spike_s`, and all after it with it."""
    spike_s: float
    stay_unaware: float
    """How often an end does not notice that the other is gone."""
    keepalive_s: float
    commit_s: float

    def heal(self) -> None:
        """No more faults of the network; bytes are still cut anywhere."""
        self.spike = 0.0
        self.commit_s = 0.001


def draw_rates(random: Random, lease_s: float) -> Rates:
    """The seed's own world."""
    return Rates(
        latency_s=random.choice((0.0005, 0.005, 0.05)),
        split=random.uniform(0.02, 0.4),
        spike=random.choice((0.0005, 0.002, 0.01)),
        spike_s=lease_s * random.uniform(0.5, 2.0),
        stay_unaware=random.uniform(0.05, 0.5),
        keepalive_s=4.0 * lease_s,
        commit_s=random.choice((0.0005, 0.005, 0.05)),
    )


def draw_plan(random: Random, workers: int, span_s: float) -> list[tuple[float, str]]:
    """When which fault is due: at least one of each kind."""
    plan: list[tuple[float, str]] = []
    for kind, (low, high) in PER_WORKER.items():
        count = max(1, round(workers * random.uniform(low, high)))
        plan += [(random.uniform(0.02, 1.0) * span_s, kind) for _ in range(count)]
    for kind, (least, most) in PER_RUN.items():
        plan += [(random.uniform(0.02, 1.0) * span_s, kind) for _ in range(random.randint(int(least), int(most)))]
    return sorted(plan)


class Tally:
    """How many of each kind there were."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys((*PER_WORKER, *PER_RUN, *EMERGENT), 0)

    def count(self, kind: str, number: int = 1) -> None:
        """One more; a kind that nobody knows is a mistake."""
        self.counts[kind] += number

    def missing(self) -> list[str]:
        """Kinds of which there was none."""
        return [kind for kind, count in self.counts.items() if not count]
