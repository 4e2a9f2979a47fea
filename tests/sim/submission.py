"""What a simulated client wants: a job, the form its items come in, what it cancels. Drawn once, then only looked at."""

from random import Random
from typing import Final

import msgspec

from districomp.messages import Items, Submit
from districomp.model import Blob, File, Item

FRAME_ITEMS_MAX: Final = 400


class Cancelling(msgspec.Struct):
    """A cancel: of these tasks, or without any of the whole job. `is_due` once its time has come."""

    after_s: float
    indexes: list[int]
    is_due: bool = False
    is_sent: bool = False
    is_answered: bool = False


class Submission(msgspec.Struct):
    """A job as its client wants it. `frames`: the items, cut as they are sent."""

    request_id: str
    definition: str
    due: float
    count: int
    numbers: tuple[int, int] | None
    frames: list[list[Item]]
    max_fails: int | None
    cancel: Cancelling | None
    items: list[Item] = []
    times_sent: int = 0

    def item(self, index: int) -> Item | None:
        """What task `index` is to get."""
        if self.numbers is not None:
            start, step = self.numbers
            return b"%d" % (start + index * step)
        return self.items[index] if self.items else None

    def is_cancelled(self, index: int | None) -> bool:
        """Whether the client has asked for this task's end (None: for that of all)."""
        cancel = self.cancel
        if cancel is None or not cancel.is_sent:
            return False
        return not cancel.indexes or index in cancel.indexes

    def messages(self, request: int) -> list[Submit | Items]:
        """What goes over the wire, a frame each."""
        first = Submit(request, self.request_id, self.definition, {}, max_fails=self.max_fails)
        if self.numbers is not None:
            first.numbers, first.count = self.numbers, self.count
            return [first]
        if not self.frames:
            first.count = 1
            return [first]
        first.items, first.last = self.frames[0], len(self.frames) == 1
        rest = self.frames[1:]
        return [first, *(Items(request, items, place == len(rest) - 1) for place, items in enumerate(rest))]


def draw_submissions(random: Random, tasks: int, span_s: float, names: list[str]) -> list[Submission]:
    """Jobs of many sizes that have `tasks` tasks together, spread over a time."""
    submissions: list[Submission] = []
    left = tasks
    while left > 0:
        count = min(left, max(1, int(tasks / 2 * random.random() ** 3)))
        left -= count
        # Each kind of task is there once before the dice decide.
        place = len(submissions)
        name = names[place] if place < len(names) else random.choice(names)
        submissions.append(_draw(random, f"request-{place}", name, count, random.uniform(0.0, span_s)))
    # Of a tenth of the jobs something is cancelled, and of at least two.
    chosen = random.sample(submissions, min(len(submissions), max(2, len(submissions) // 10)))
    for place, submission in enumerate(chosen):
        submission.cancel = _draw_cancel(random, submission.count, 0.2 * span_s, is_whole=place % 2 == 0)
    return submissions


def draw_extra(random: Random, place: int, count: int, due: float) -> Submission:
    """One more job, with something cancelled of it: so that faults that are left find something to break."""
    submission = _draw(random, f"extra-{place}", "slow", count, due)
    submission.max_fails = None
    submission.cancel = _draw_cancel(random, count, 1.0, is_whole=place % 2 == 0)
    return submission


def _draw(random: Random, request_id: str, name: str, count: int, due: float) -> Submission:
    items: list[Item] = []
    numbers = None
    form = random.choice(("numbers", "items", "items", "files", "blobs"))
    if count == 1 and random.random() < 0.3:
        form = "nothing"
    if form == "numbers":
        numbers = random.randint(-1000, 1000), random.choice((1, 2, -3))
    elif form == "files" and name != "stream":
        items = [File(f"/data/{request_id}/{k}", b"content %d" % k) for k in range(count)]
    elif form == "blobs":
        items = [Blob(b"%-32d" % k, 100_000 + k) for k in range(count)]
    elif form != "nothing" or name == "stream":
        items = [b"%s:%d" % (request_id.encode(), k) for k in range(count)]
    size = random.randint(1, FRAME_ITEMS_MAX)
    frames = [items[first : first + size] for first in range(0, len(items), size)]
    max_fails = random.randint(1, 5) if random.random() < 0.1 else None
    return Submission(request_id, name, due, count, numbers, frames, max_fails, None, items)


def _draw_cancel(random: Random, count: int, within_s: float, *, is_whole: bool) -> Cancelling:
    indexes: list[int] = []
    if not is_whole:
        some = random.randint(1, max(1, min(500, count // 2)))
        first = random.randrange(count)
        if random.random() < 0.5:
            indexes = list(range(first, min(count, first + some)))
        else:
            indexes = sorted(random.sample(range(count), some))
    return Cancelling(random.uniform(0.0, within_s), indexes)
