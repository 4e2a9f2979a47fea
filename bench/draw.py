"""`python -m bench draw`, a part of `make docs`: the drawn parts of docs/benchmarks.md and its plots, from bench/results.

`--check` changes nothing and fails when the document or a plot is not what would be drawn. Measures nothing.
"""

import argparse
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench import svg, tables
from bench.results import FOLDER, Comparison, Point, Scale, load

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
PLOTS: Final = ROOT / "docs" / "plots"
KINDS: Final = {tables.OURS: "ours", tables.LIMIT: "limit"}
PEER_PLOTS: Final = {
    "noop": ("peers-noop.svg", "No-op tasks a second, all results at the client (logarithmic)", True),
    "true": ("peers-true.svg", "/bin/true, a process each: tasks a second", False),
    "map": ("peers-map.svg", "Functions of Python, one call a task: calls a second (logarithmic)", True),
    "latency_median": ("peers-latency.svg", "One task from submission to result, median ms (logarithmic)", True),
}
"""Figure -> file, title, logarithmic."""
SCALE_PLOTS: Final = {
    "workers": ("scale-workers.svg", "Against connected workers"),
    "tasks": ("scale-tasks.svg", "Against queued tasks"),
}


def main(argv: Sequence[str]) -> int:
    """0; with --check 1 if something is not current."""
    parser = argparse.ArgumentParser(prog="python -m bench draw", description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args(argv).check:
        write()
        return 0
    stale = [path for path, text in drawn().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    stale += [path for path in PLOTS.glob("*.svg") if path not in drawn()]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what bench/results says: run `make docs`")
    return int(bool(stale))


def write() -> None:
    """Draw everything anew; plots of figures that are no more go."""
    files = drawn()
    PLOTS.mkdir(exist_ok=True)
    for path in PLOTS.glob("*.svg"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")


def drawn(results: Path = FOLDER, document: Path = DOCUMENT) -> dict[Path, str]:
    """File -> what it should hold: the document and each plot."""
    text = document.read_text(encoding="utf-8")
    files: dict[Path, str] = {}
    for name, part in (("peers", peers_part), ("scale", scale_part)):
        inside, plots = part(results)
        text = replace_part(text, name, inside)
        files |= {PLOTS / file: plot for file, plot in plots.items()}
    return {document: text, **files}


def replace_part(text: str, name: str, inside: str) -> str:
    """The document with one drawn part made anew. ValueError if it has no such part."""
    part = re.compile(rf"(<!-- drawn: {name}\b[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
    if not part.search(text):
        raise ValueError(f"docs/benchmarks.md has no part `{name}`")
    return part.sub(lambda match: f"{match[1]}{inside}\n{match[2]}", text)


def peers_part(results: Path = FOLDER) -> tuple[str, dict[str, str]]:
    """Markdown and plots (file name -> SVG)."""
    try:
        result = load(Comparison, results)
    except FileNotFoundError:
        return "Not measured yet: `python -m bench peers` does.", {}
    plots = peer_plots(result)
    return "\n\n".join([tables.comparison(result), *_images(plots)]), plots


def scale_part(results: Path = FOLDER) -> tuple[str, dict[str, str]]:
    """Markdown and plots (file name -> SVG)."""
    try:
        result = load(Scale, results)
    except FileNotFoundError:
        return "Not measured yet: `python -m bench scale` does.", {}
    plots = scale_plots(result)
    return "\n\n".join([tables.scale(result), *_images(plots)]), plots


def peer_plots(result: Comparison) -> dict[str, str]:
    """A plot for each figure that was measured of more than one system."""
    plots = {}
    for name, (file, title, logarithmic) in PEER_PLOTS.items():
        rows = [
            svg.Bar(system.title, *_spread(series.values), KINDS.get(system.name, "other"))
            for system in result.systems
            if (series := system.figures.get(name)) and series.values
        ]
        rows.sort(key=lambda row: row.median, reverse=name != "latency_median")
        if len(rows) > 1:
            plots[file] = svg.bars(title, rows, logarithmic=logarithmic)
    return plots


def scale_plots(result: Scale) -> dict[str, str]:
    """A file for the workers and one for the tasks, a panel for each figure."""
    curves: dict[str, list[Point]] = {"workers": result.workers, "tasks": result.tasks}
    plots = {}
    for name, (file, title) in SCALE_PLOTS.items():
        points = curves[name]
        each = [
            svg.Panel(what, [(point.at, *_spread(point.figures[key])) for point in points if point.figures.get(key)])
            for key, what in tables.SCALE_FIGURES.items()
            if any(point.figures.get(key) for point in points)
        ]
        if each:
            plots[file] = svg.panels(title, each)
    return plots


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def _images(plots: dict[str, str]) -> list[str]:
    title: Callable[[str], str] = lambda plot: plot.partition("<title>")[2].partition("</title>")[0]  # noqa: E731
    return [f"![{title(plot)}](plots/{file})" for file, plot in plots.items()]
