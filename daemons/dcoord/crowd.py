"""Strangers, counted by whom they belong to: who is next, and who has to go when there are too many.

Owns the fairness between addresses: a flood from one of them is thinned out there, and the others have their turn.
Must not know what a stranger is. Pure.
"""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Crowd(Generic[T]):
    """Members of groups, in order of arrival. A group is an address, or whoever else is to be treated as one."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[T, None]] = {}
        self._group_of: dict[T, str] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, member: object) -> bool:
        return member in self._group_of

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._group_of))

    def add(self, group: str, member: T) -> None:
        """A member came; it must not be here already."""
        self._groups.setdefault(group, {})[member] = None
        self._group_of[member] = group

    def discard(self, member: T) -> bool:
        """It is gone; whether it was here."""
        group = self._group_of.pop(member, None)
        if group is None:
            return False
        members = self._groups[group]
        del members[member]
        if not members:
            del self._groups[group]
        return True

    def count(self, group: str) -> int:
        """How many of a group are here."""
        return len(self._groups.get(group, ()))

    def oldest_of(self, group: str) -> T:
        """Who of a group came first. KeyError if nobody is of it."""
        return next(iter(self._groups[group]))

    def oldest(self) -> T:
        """Who came first of the largest group: whose leaving hurts those least who are few. Not when it is empty."""
        largest = max(self._groups, key=self.count)
        return self.oldest_of(largest)

    def take(self) -> T:
        """Take one out, each group in its turn and its oldest first. Not when it is empty."""
        group, members = next(iter(self._groups.items()))
        member = next(iter(members))
        self.discard(member)
        if members:
            self._groups[group] = self._groups.pop(group)
        return member
