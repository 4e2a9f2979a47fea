"""Figures of a run as they are kept: the shapes of bench/results/*.json, and what is computed from them.

Pure but for reading and writing the files. Each sample is one round's figure, in the order of the rounds, so that two
systems' samples at the same place were measured in the same minute.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

FOLDER: Final = Path(__file__).resolve().parent / "results"


class Series(msgspec.Struct, omit_defaults=True):
    """One figure of one system, a value a round; `tasks`: how many each value comes from."""

    tasks: int
    values: list[float] = []


class System(msgspec.Struct):
    """What was measured of one system; `missing`: why there is nothing (more).

    `figures`: `noop`, `true`, `map` (a second), `latency_median`, `latency_p99` (ms), `ready_s`, `queued_bytes` (a task).
    """

    name: str
    title: str
    version: str
    durable: str
    note: str
    missing: str = ""
    figures: dict[str, Series] = {}

    def add(self, figure: str, tasks: int, value: float) -> None:
        """One more round's value, to four significant digits: the rest is noise."""
        series = self.figures.setdefault(figure, Series(tasks, []))
        series.values.append(rounded(value))


class Comparison(msgspec.Struct):
    """results/peers.json."""

    machine: str
    rounds: int
    systems: list[System]

    def system(self, name: str) -> System | None:
        """By its name."""
        return next((system for system in self.systems if system.name == name), None)


class Point(msgspec.Struct):
    """One place of a curve: so many workers or tasks, and every figure measured there, a value a round."""

    at: int
    figures: dict[str, list[float]] = {}

    def add(self, figure: str, value: float) -> None:
        """One more round's value."""
        self.figures.setdefault(figure, []).append(rounded(value))


class Scale(msgspec.Struct):
    """results/scale.json: against connected workers, and against queued tasks."""

    machine: str
    rounds: int
    workers: list[Point]
    tasks: list[Point]


Result = TypeVar("Result", Comparison, Scale)


def load(kind: type[Result], folder: Path = FOLDER) -> Result:
    """From its file. FileNotFoundError; msgspec.ValidationError if it has another shape."""
    return msgspec.json.decode(_file(kind, folder).read_bytes(), type=kind)


def save(result: Comparison | Scale, folder: Path = FOLDER) -> Path:
    """Into its file, readable."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _file(type(result), folder)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return file


def _file(kind: type[Comparison] | type[Scale], folder: Path) -> Path:
    return folder / ("peers.json" if kind is Comparison else "scale.json")


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def percentile(values: Sequence[float], share: float) -> float:
    """The first value that more than this share of all do not exceed: 0.99 of a hundred is the largest, of a thousand the tenth largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratios(ours: Series, theirs: Series) -> list[float]:
    """Ours by theirs, each pair of the same round."""
    return [mine / other for mine, other in zip(ours.values, theirs.values, strict=False) if other]


def middle(values: Sequence[float]) -> str:
    """`median [least - most]` in as many digits as mean something; `-` for none, and one value alone."""
    if not values:
        return "-"
    median = statistics.median(values)
    if len(values) == 1:
        return figure(median)
    return f"{figure(median)} [{figure(min(values))} - {figure(max(values))}]"


def figure(value: float) -> str:
    """A number in three digits, or whole with its thousands parted."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"
