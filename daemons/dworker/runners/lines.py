"""Slots in which processes run one after another, each started without asking anybody. Must import next to nothing."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOW = 1
"""No more than so many waiting in a slot: it is time to ask for more."""


class Lines:
    """Who runs in which slot, and the requests that wait for that. A request is a tuple that begins with its key; slot -1 is none."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # key -> slot
        self._running: dict[int, int] = {}  # slot -> key
        self._waiting: dict[int, list[tuple[Any, ...]]] = {}
        self._free: list[int] = []  # slots in which something has ended

    def running(self, slot: int) -> int | None:
        """The key of what runs in a slot."""
        return self._running.get(slot)

    def begun(self, key: int, slot: int) -> None:
        """A process runs in a slot."""
        if slot >= 0:
            self._slots[key], self._running[slot] = slot, key

    def add(self, slot: int, request: "tuple[Any, ...]") -> None:
        """Have a request wait for what runs there."""
        self._waiting.setdefault(slot, []).append(request)

    def ended(self, key: int) -> bool:
        """A process has ended; whether it is time to ask for more."""
        slot = self._slots.pop(key, -1)
        if slot >= 0:
            del self._running[slot]
            self._free.append(slot)
        return len(self._waiting.get(slot, ())) <= LOW

    def failed(self, slot: int) -> None:
        """A process could not be started in a slot."""
        if slot >= 0:
            self._free.append(slot)

    def following(self) -> "tuple[Any, ...] | None":
        """A request whose turn it is now."""
        while self._free:
            slot = self._free.pop()
            line = self._waiting.get(slot)
            if line and slot not in self._running:
                return line.pop(0)
        return None

    def waiting_for(self, key: int) -> "list[tuple[Any, ...]]":
        """Take out all that wait for a process."""
        return self._waiting.pop(self._slots.get(key, -1), [])

    def withdraw(self, key: int) -> "tuple[Any, ...] | None":
        """Take out one that waits."""
        for line in self._waiting.values():
            for request in line:
                if request[0] == key:
                    line.remove(request)
                    return request
        return None
