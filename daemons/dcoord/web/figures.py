"""How the page writes its figures. Pure; `static/page.js` has the same functions, and a browser test holds them equal."""

import math
from typing import Final

from districomp.documents import Counts

STATES: Final = ("done", "running", "queued", "failed", "cancelled", "skipped")
"""Task states in the order of the bars: what is finished well stands left."""
ENDED_JOB_STATES: Final = ("done", "failed", "cancelled")
BAR_WIDTH: Final = 1000
SPARK_HEIGHT: Final = 40
UNKNOWN: Final = "\N{EN DASH}"


def count(number: int) -> str:
    """`1234567` as `1,234,567`."""
    return f"{number:,}"


def rate(per_s: float) -> str:
    """A rate with as many digits as one can read."""
    return f"{math.floor(per_s * 10 + 0.5) / 10:.1f}" if per_s < 9.95 else f"{math.floor(per_s + 0.5):,}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units; a dash for None."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, math.floor(seconds + 0.5))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def clock(iso: str | None) -> str:
    """The time of day of an ISO time."""
    return f"{iso[11:19]} UTC" if iso else UNKNOWN


def ended(counts: Counts) -> int:
    """Tasks that need nothing more."""
    return counts.done + counts.failed + counts.cancelled + counts.skipped


def total(counts: Counts) -> int:
    """All tasks."""
    return ended(counts) + counts.queued + counts.running


def percent(counts: Counts, tasks: int) -> str:
    """How much has ended, rounded down: 100 % is said only when it is true."""
    return f"{100 * ended(counts) // tasks} %" if tasks else "0 %"


def bar(counts: Counts, tasks: int) -> list[tuple[str, int, int]]:
    """The parts of a bar of BAR_WIDTH: (state, x, width), in the order of STATES, without gaps."""
    parts = []
    before = 0
    for state in STATES:
        number = getattr(counts, state)
        x = BAR_WIDTH * before // tasks if tasks else 0
        before += number
        end = BAR_WIDTH * before // tasks if tasks else 0
        parts.append((state, x, end - x))
    return parts


def share(used: int, whole: int) -> int:
    """A part of BAR_WIDTH."""
    return min(BAR_WIDTH, BAR_WIDTH * used // whole) if whole else 0


def highest(rates: list[float | None]) -> float:
    """The largest rate known."""
    return max((each for each in rates if each is not None), default=0.0)


def spark_line(rates: list[float | None], *, area: bool = False) -> str:
    """An SVG path through the known rates, x by index, y from 0 (SPARK_HEIGHT - 1) to the highest (2); with `area` closed below."""
    top = highest(rates) or 1.0
    parts: list[str] = []
    run: list[tuple[int, float]] = []
    for x, each in enumerate([*rates, None]):
        if each is not None:
            run.append((x, SPARK_HEIGHT - 1 - each / top * (SPARK_HEIGHT - 3)))
        elif run:
            line = "L".join(f"{px} {py:.1f}" for px, py in run)
            parts.append(f"M{run[0][0]} {SPARK_HEIGHT}L{line}L{run[-1][0]} {SPARK_HEIGHT}Z" if area else f"M{line}")
            run = []
    return "".join(parts)


def states(numbers: dict[str, int]) -> str:
    """How many of each, as `2 busy, 1 idle`."""
    return ", ".join(f"{count(number)} {state}" for state, number in numbers.items()) or "none has joined"


def waiting(pending: int) -> str:
    """Workers that a person has to let in, '' if there are none."""
    return f"{count(pending)} {'waits' if pending == 1 else 'wait'} to be let in" if pending else ""


def failures(counts: Counts) -> str:
    """What went wrong in a job, '' if nothing did."""
    return f"{count(counts.failed)} failed" if counts.failed else ""


def more(number: int, shown: int, command: str) -> str:
    """What a table leaves out, and how to see it."""
    return f"and {count(number - shown)} more: {command}" if number > shown else ""


def fault(name: str, problems: int) -> str:
    """A definition that is not right."""
    return f"{name}: {count(problems)} {'problem' if problems == 1 else 'problems'}"


def time_left(state: str, eta_s: float | None) -> str:
    """How long a job will still take; '' for one that has ended."""
    return "" if state in ENDED_JOB_STATES else duration(eta_s)


def not_reachable(since: str) -> str:
    """The coordinator's absence."""
    return f"coordinator not reachable since {clock(since)}"
