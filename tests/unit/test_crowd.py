"""Who is next, and who has to go."""

import pytest

from dcoord.crowd import Crowd


def crowd(*members: str) -> Crowd[str]:
    """Members whose group is their first letter."""
    made: Crowd[str] = Crowd()
    for member in members:
        made.add(member[0], member)
    return made


def test_the_oldest_of_the_largest_group_has_to_go() -> None:
    it = crowd("a1", "b1", "b2", "a2", "b3")
    left = []
    while it:
        left.append(it.oldest())
        assert it.discard(left[-1])
    assert left == ["b1", "a1", "b2", "a2", "b3"]
    assert sorted(left) == ["a1", "a2", "b1", "b2", "b3"]


def test_each_group_has_its_turn() -> None:
    it = crowd("a1", "a2", "a3", "b1", "c1", "c2")
    assert [it.take() for _ in range(6)] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert len(it) == 0


def test_who_is_gone_is_counted_no_more() -> None:
    it = crowd("a1", "a2", "b1")
    assert it.discard("a1")
    assert not it.discard("a1")
    assert (it.count("a"), it.count("b"), it.count("c"), len(it)) == (1, 1, 0, 2)
    assert "a1" not in it
    assert "a2" in it
    assert it.oldest_of("a") == "a2"
    with pytest.raises(KeyError):
        it.oldest_of("c")
