"""The seals of Assigns: what a worker shows to a coordinator that was restarted, to prove which leases it has. Pure.

Kept by Assign and not by lease, as long as anything of one is held or its report is not acknowledged. Which
those are is asked for only now and then, as spans of leases: a seal too many does no harm.
"""

from collections.abc import Iterable
from typing import Final

from districomp.messages import Assign, Sealed

SEALS_MIN: Final = 64
"""So many are kept without a look at which are still needed."""

Span = tuple[int, int]
"""The lowest and the highest of some leases."""


class Seals:
    """The seals of what this worker was given, by first lease, in the order given."""

    def __init__(self) -> None:
        self._kept: dict[int, Sealed] = {}
        self._limit = SEALS_MIN

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        """Whether it is time to `prune`: twice as many were added as were needed the last time."""
        return len(self._kept) >= self._limit

    def add(self, assign: Assign) -> None:
        """Keep the seal of an Assign."""
        self._kept[assign.lease] = Sealed(assign.job, assign.lease, assign.indexes, assign.seal)

    def prune(self, spans: Iterable[Span]) -> None:
        """Forget what has no lease in any of these spans."""
        self._kept = {sealed.lease: sealed for sealed in self._in(spans)}
        self._limit = max(SEALS_MIN, 2 * len(self._kept))

    def proofs(self, fence: int) -> list[Sealed]:
        """What a coordinator must be shown that knows no lease below `fence`."""
        return [sealed for sealed in self._kept.values() if sealed.lease < fence]

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def _in(self, spans: Iterable[Span]) -> list[Sealed]:
        ordered = sorted(spans)
        found: list[Sealed] = []
        place, highest = 0, -1
        for lease in sorted(self._kept):
            sealed = self._kept[lease]
            end = lease + len(sealed.indexes)
            while place < len(ordered) and ordered[place][0] < end:
                highest = max(highest, ordered[place][1])
                place += 1
            if highest >= lease:
                found.append(sealed)
        return found
