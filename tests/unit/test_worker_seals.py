"""The seals that a worker keeps: as long as they may be needed, and no longer. No I/O."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.messages import Ack, Assign, Inventory, Reports, Sealed, Welcome
from dworker.events import Connected, Disconnected
from dworker.seals import SEALS_MIN, Seals
from tests.unit.workerlab import LEASE_S, Lab


@pytest.fixture
def joined() -> Iterator[Lab]:
    lab = Lab()
    lab.connect()
    lab.define()
    yield lab
    lab.core.check()


def given_out(*sizes: int) -> Seals:
    """Seals of Assigns of so many leases each, without a gap from 100."""
    seals, lease = Seals(), 100
    for size in sizes:
        seals.add(Assign(1, lease, list(range(size)), seal=b"%d" % lease))
        lease += size
    return seals


def leases(seals: Seals, fence: int = 2**63) -> list[int]:
    return [sealed.lease for sealed in seals.proofs(fence)]


@pytest.mark.parametrize(
    ("spans", "kept"),
    [
        ([], []),
        ([(100, 100)], [100]),
        ([(109, 109)], [100]),
        ([(110, 110)], [110]),
        ([(109, 110)], [100, 110]),
        ([(0, 99), (131, 500)], []),
        ([(0, 500)], [100, 110, 111]),
        ([(111, 120), (0, 5), (104, 105)], [100, 111]),
    ],
)
def test_what_a_span_touches_is_kept(spans: list[tuple[int, int]], kept: list[int]) -> None:
    seals = given_out(10, 1, 20)
    seals.prune(spans)
    assert leases(seals) == kept


def test_only_what_is_of_before_the_fence_is_proved() -> None:
    assert leases(given_out(10, 1, 20), 111) == [100, 110]


def test_they_are_looked_through_when_twice_as_many_came_as_are_needed() -> None:
    seals = given_out(*[1] * (SEALS_MIN - 1))
    assert not seals.is_full
    seals.add(Assign(1, 10_000, [1]))
    assert seals.is_full
    seals.prune([(100, 10_000)])
    assert len(seals) == SEALS_MIN
    assert not seals.is_full


@given(st.lists(st.integers(1, 4), max_size=12), st.lists(st.tuples(st.integers(95, 130), st.integers(0, 9))))
def test_no_seal_is_lost_that_is_needed(sizes: list[int], starts: list[tuple[int, int]]) -> None:
    seals, spans = given_out(*sizes), [(low, low + more) for low, more in starts]
    every = {sealed.lease: sealed.indexes for sealed in seals.proofs(2**63)}
    seals.prune(spans)
    for lease, indexes in every.items():
        held = any(low < lease + len(indexes) and lease <= high for low, high in spans)
        assert (lease in leases(seals)) == held


def test_to_a_coordinator_that_was_restarted_it_proves_first_what_it_has(joined: Lab) -> None:
    joined.hear(
        Assign(1, 1, [0, 1, 2], seal=b"first"), Assign(1, 4, [3], seal=b"second"), Assign(1, 5, [4], seal=b"third")
    )
    first, second = joined.starts
    joined.end(first)
    joined.end(second)
    joined.feed(Disconnected())
    joined.feed(Connected(Welcome(1, "c1", "lab", 2, LEASE_S, "", 0.0, fence=5), joined.now))
    assert joined.sent[:2] == [Sealed(1, 1, [0, 1, 2], b"first"), Sealed(1, 4, [3], b"second")]
    assert isinstance(joined.sent[2], Reports)
    joined.hear(Ack([message.serial for message in joined.sent if isinstance(message, Reports)]))
    joined.feed(Disconnected())
    joined.feed(Connected(Welcome(1, "c1", "lab", 3, LEASE_S, "", 0.0, fence=6), joined.now))
    proved = [message.lease for message in joined.sent if isinstance(message, Sealed)]
    assert proved == [1, 4, 5], "the third of the first Assign is still held"


def test_seals_are_forgotten_with_what_they_are_for(joined: Lab) -> None:
    for lease in range(1, 1 + 2 * SEALS_MIN):
        joined.hear(Assign(1, lease, [lease]))
        (start,) = joined.starts
        joined.end(start)
        (reports,) = joined.sent
        assert isinstance(reports, Reports)
        joined.hear(Ack([reports.serial]))
    joined.feed(Disconnected())
    joined.feed(Connected(Welcome(1, "c1", "lab", 2, LEASE_S, "", 0.0, fence=2**60), joined.now))
    assert joined.sent == [Inventory(0, [], [], [], [], last=True)]
