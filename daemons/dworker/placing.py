"""Which slot gets which waiting leases, and which slot gives attempts in hand back because its first takes long. Pure.

A slot with a lasting process has more in hand than it runs, so that the process never waits for us. That is a
bet on the first of them being as short as those before. When it is lost, what waits behind it comes back here:
other slots get it, or other machines, because what waits here can be recalled.
"""

from dworker.events import StartAttempts, TakeBack
from dworker.hold import TAKE_BACK_S, Queue, Slot


def fill(queue: Queue, slots: list[Slot], now: float) -> list[StartAttempts]:
    """Give waiting leases to slots: free ones first, then slots of lasting processes that run short."""
    starts: list[StartAttempts] = []
    for slot in slots:
        if not slot.hand and not _give(queue, slot, len(slots), now, starts):
            return starts
    for slot in slots:
        work, hand = slot.work, len(slot.hand)
        if work is None or slot.disowned or work.window < 2 or 2 * hand > work.window:
            continue
        if hand <= _share(queue, len(slots)) and not _give(queue, slot, len(slots), now, starts):
            return starts
    return starts


def _give(queue: Queue, slot: Slot, slots: int, now: float, starts: list[StartAttempts]) -> bool:
    """Give a slot the next leases, all of one job; False if there are none."""
    chunk = queue.head()
    if chunk is None:
        return False
    work = chunk.work
    if slot.hand and (slot.work is not work or slot.relieved == slot.head()):
        return True
    assert work.definition is not None
    count = min(work.window - len(slot.hand), chunk.left, _share(queue, slots))
    leases, indexes, attempts, items = chunk.take(count)
    queue.count -= count
    if not slot.hand:
        slot.work, slot.since = work, now
    slot.hand.update(zip(leases, zip(indexes, attempts or [1] * count, strict=True), strict=True))
    start = StartAttempts(
        slot.number, work.job, work.definition, work.params, leases, indexes, attempts, items, work.matrix
    )
    starts.append(start)
    return True


def _share(queue: Queue, slots: int) -> int:
    """A slot's fair part of what waits: the rest is for whichever slot is free first."""
    return -(-queue.count // slots)


def relieve(slots: list[Slot], now: float) -> list[TakeBack]:
    """Ask back what is too much for a slot, and all behind a first attempt that takes long: each once for a first attempt."""
    asked: list[TakeBack] = []
    for slot in slots:
        if not may_be_relieved(slot):
            continue
        assert slot.work is not None
        is_stuck = now >= relief_due(slot)
        if not is_stuck and slot.trimmed == slot.head():
            continue
        excess = slot.work.excess(len(slot.hand), is_stuck=is_stuck)
        if excess:
            slot.trimmed = slot.head()
            if is_stuck:
                slot.relieved = slot.trimmed
            asked.append(TakeBack(slot.number, list(slot.hand)[-excess:]))
    return asked


def may_be_relieved(slot: Slot) -> bool:
    """Whether a slot has something behind its first attempt that was not all asked back yet."""
    return len(slot.hand) > 1 and not slot.disowned and slot.relieved != slot.head()


def relief_due(slot: Slot) -> float:
    """When to look at a slot that may be relieved, at the latest."""
    return slot.since + TAKE_BACK_S
