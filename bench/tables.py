"""Results as Markdown: the drawn parts of docs/benchmarks.md. Pure: figures in, text out."""

from collections.abc import Sequence
from typing import Final

from bench.results import Comparison, Point, Scale, Series, System, middle, ratios

OURS: Final = "districomp"
LIMIT: Final = "limit"
SCALE_FIGURES: Final = {
    "noop": "no-op tasks/s",
    "cpu_us": "coordinator, us a task",
    "rss_mb": "coordinator, MB",
    "worker_kb": "kB a worker",
    "submit_ms": "acknowledged after ms",
    "queued_bytes": "bytes a queued task",
    "data_bytes": "bytes a queued task with 100 bytes",
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [list(heads), ["---"] * len(heads), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def comparison(result: Comparison) -> str:
    """The systems, what was compared of each pair, and what was not measured and why."""
    parts = [
        f"{result.machine}. {_rounds(result.rounds)}: each figure is the median [least - most].",
        _systems(result),
        _functions(result),
        _against(result),
        _notes(result),
    ]
    return "\n\n".join(part for part in parts if part)


def _rounds(rounds: int) -> str:
    return "One round" if rounds == 1 else f"{rounds} rounds, each system once in every round"


def _measured(result: Comparison, figure_name: str) -> list[System]:
    return [system for system in result.systems if figure_name in system.figures]


def _values(system: System, figure_name: str) -> list[float]:
    series = system.figures.get(figure_name)
    return series.values if series else []


def _title(system: System) -> str:
    title = f"{system.title} {system.version}".strip()
    return f"**{title}**" if system.name == OURS else title


def _systems(result: Comparison) -> str:
    heads = ["system", "no-op tasks/s", "/bin/true tasks/s", "latency, median ms", "p99 ms"]
    names = ["noop", "true", "latency_median", "latency_p99", "queued_bytes"]
    rows = [
        [_title(system), *(middle(_values(system, name)) for name in names), system.durable]
        for system in result.systems
        if system.figures
    ]
    return table([*heads, "bytes a queued task", "durable"], rows)


def _functions(result: Comparison) -> str:
    """Python functions, one call a task."""
    rows = [[_title(system), middle(_values(system, "map"))] for system in _measured(result, "map")]
    return table(["functions of Python, one call a task", "calls/s"], rows) if rows else ""


def _against(result: Comparison) -> str:
    """Ours by theirs, pair by pair of the same round."""
    ours = result.system(OURS)
    if ours is None:
        return ""
    rows = []
    for other in result.systems:
        cells = [middle(_ratio(ours, other, name)) for name in ("noop", "true", "map")]
        if other is not ours and set(cells) != {"-"}:
            rows.append([other.title, *cells])
    heads = ["districomp's rate, divided by that of", "no-op", "/bin/true", "functions"]
    return table(heads, rows) if rows else ""


def _ratio(ours: System, other: System, name: str) -> list[float]:
    nothing = Series(0)
    return ratios(ours.figures.get(name, nothing), other.figures.get(name, nothing))


def _notes(result: Comparison) -> str:
    notes = [f"- {system.title}: {system.note}." for system in result.systems if system.note and system.figures]
    missing = [
        f"- {system.title}: {'stopped' if system.figures else 'not measured'}: {system.missing.rstrip('.')}."
        for system in result.systems
        if system.missing
    ]
    return "\n".join([*notes, *missing])


def scale(result: Scale) -> str:
    """Two tables: against workers, against tasks."""
    curves = (("connected workers", result.workers), ("queued tasks", result.tasks))
    return "\n\n".join(
        [
            f"{result.machine}. {_rounds(result.rounds).split(',')[0]}: each figure is the median [least - most].",
            *(_curve(head, points) for head, points in curves if points),
        ]
    )


def _curve(head: str, points: Sequence[Point]) -> str:
    names = [name for name in SCALE_FIGURES if any(name in point.figures for point in points)]
    rows = [[f"{point.at:,}", *(middle(point.figures.get(name, [])) for name in names)] for point in points]
    return table([head, *(SCALE_FIGURES[name] for name in names)], rows)
