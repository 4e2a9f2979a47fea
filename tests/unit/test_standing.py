"""The lines that say how far a worker has come are read back as what was written."""

import pytest

from dworker import standing


@pytest.mark.parametrize("name", ["lab", "the lab at home", "joined x at y"])
@pytest.mark.parametrize("place", ["169.254.1.1:8420", "[fe80::1%eth0]:8420"])
def test_a_joined_worker_is_read_back(name: str, place: str) -> None:
    found = standing.read(standing.joined(name, place))
    assert (found.state, found.name, found.place, found.words) == ("joined", name, place, "")


def test_a_pending_worker_is_read_back() -> None:
    line = standing.pending([("::ffff:10.0.0.1", 8420), ("fe80::1", 8420)], "babab-babad-babaf")
    found = standing.read(line)
    assert (found.state, found.words) == ("pending", "babab-babad-babaf")
    assert found.place == "10.0.0.1:8420 or [fe80::1]:8420"


def test_a_line_stays_short_with_many_addresses() -> None:
    line = standing.pending([(f"10.0.0.{i}", 8420) for i in range(200)], "babab-babad-babaf")
    assert len(line) < 200


@pytest.mark.parametrize("line", ["", "looking for a coordinator", "waits to be let in", "joined lab"])
def test_anything_else_is_apart(line: str) -> None:
    assert standing.read(line) == standing.Standing("apart", line)
