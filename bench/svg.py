"""Plots as SVG: bars beside their names, and curves in panels. Pure text, no library.

Owns the looks: readable on light and dark pages (each plot brings its own background, which follows the reader's
setting), on a telephone too, whose page shrinks it by a third, and without colour (every bar and point has its figure
beside it). Knows nothing of what is plotted.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

WIDTH: Final = 560
STYLE: Final = """\
<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 14px; font-weight: 600 } .small { font-size: 12px; fill: #57606a } .end { text-anchor: end }
.figure { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.middle { text-anchor: middle } .page { fill: #ffffff } .grid { stroke: #d0d7de } .range { stroke: #24292f; stroke-width: 1.5 }
.other { fill: #8c959f } .ours { fill: #1f6feb } .limit { fill: #bc4c00 } .curve { stroke: #1f6feb; stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .figure { stroke: #0d1117 } .page { fill: #0d1117 } .grid { stroke: #30363d } .range { stroke: #e6edf3 }
.other { fill: #6e7681 } .ours { fill: #4493f8 } .limit { fill: #f0883e } .curve { stroke: #4493f8 } }
</style>"""

LABEL_WIDTH: Final = 216
VALUE_WIDTH: Final = 62
ROW: Final = 26
BAR: Final = 14
TOP: Final = 52
PANEL_HEIGHT: Final = 180
PANEL_MARGIN: Final = 58
INSET: Final = 22
"""Room beside the first and last point, for their figures."""


class Bar(NamedTuple):
    """One row. `kind`: the class of its colour, `ours`, `limit` or `other`."""

    label: str
    low: float
    median: float
    high: float
    kind: str = "other"


class Panel(NamedTuple):
    """One curve: `points` are (x, low, median, high), x on a logarithmic axis, y from zero or logarithmic."""

    title: str
    points: Sequence[tuple[float, float, float, float]]
    logarithmic: bool = False


class Scale(NamedTuple):
    """From values to pixels, along one axis; `step` between marks, 0 on a logarithmic one."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """The pixel of a value; one outside of the axis lies at its end."""
        low, high, here = self.low, self.high, min(max(value, self.low), self.high)
        if not self.step:
            low, high, here = math.log10(low), math.log10(high), math.log10(here)
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def marks(self) -> list[float]:
        """Where the axis has lines: the powers of ten, or a few round numbers."""
        if not self.step:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            each = max(1, math.ceil((last - first) / 7))
            return [10.0**power for power in range(first, last + 1, each)]
        return [self.step * number for number in range(round(self.high / self.step) + 1)]


def scale(values: Sequence[float], start: float, end: float, *, logarithmic: bool) -> Scale:
    """One that has room for all values: from zero, or between powers of ten."""
    positive = [value for value in values if value > 0] or [1.0]
    if logarithmic:
        low = 10.0 ** math.floor(math.log10(min(positive)))
        high = 10.0 ** math.ceil(math.log10(max(positive)))
        return Scale(low, high if high > low else 10 * low, start, end, 0.0)
    unit = _step(max(positive))
    return Scale(0.0, unit * math.ceil(max(positive) / unit - 1e-9), start, end, unit)


def _step(high: float) -> float:
    """1, 2 or 5 times a power of ten, three to six times up to `high`."""
    power = 10.0 ** math.floor(math.log10(high))
    return next(step * power for step in (2.0, 1.0, 0.5, 0.2) if high / (step * power) >= 2.5)


def short(value: float) -> str:
    """A number for an axis or a bar: 1,500 is 1.5k, 2,000,000 is 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def bars(title: str, rows: Sequence[Bar], *, logarithmic: bool = False) -> str:
    """Horizontal bars, a line from the least to the most of each over it."""
    values = [value for row in rows for value in (row.low, row.median, row.high)]
    axis = scale(values, LABEL_WIDTH, WIDTH - VALUE_WIDTH, logarithmic=logarithmic)
    bottom = TOP + ROW * len(rows)
    parts = [_text(16, 24, title, "title")]
    for mark in axis.marks():
        x = axis.at(mark)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 8}V{bottom}"/>')
        parts.append(_text(x, bottom + 16, short(mark), "small middle"))
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        middle = y + BAR / 2
        width = max(1.0, axis.at(row.median) - axis.start)
        parts.append(_text(LABEL_WIDTH - 10, middle + 4.5, row.label, "end"))
        parts.append(f'<rect class="{row.kind}" x="{axis.start}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>')
        if row.high > row.low:
            parts.append(f'<path class="range" d="M{axis.at(row.low):.1f} {middle}H{axis.at(row.high):.1f}"/>')
        parts.append(_text(axis.at(row.high) + 6, middle + 4.5, short(row.median), ""))
    return _page(bottom + 28, title, parts)


def panels(title: str, each: Sequence[Panel]) -> str:
    """Curves, one below the other."""
    parts = [_text(16, 24, title, "title")]
    for number, panel in enumerate(each):
        parts += _panel(panel, 40 + PANEL_HEIGHT * number)
    return _page(48 + PANEL_HEIGHT * len(each), title, parts)


def _panel(panel: Panel, top: float) -> list[str]:
    start, end = PANEL_MARGIN, WIDTH - 16
    x_axis = scale([point[0] for point in panel.points], start + INSET, end - INSET, logarithmic=True)
    heights = [value for point in panel.points for value in point[1:]]
    y_axis = scale(heights, top + PANEL_HEIGHT - 40, top + 40, logarithmic=panel.logarithmic)
    parts = [_text(16, top + 18, panel.title, "")]
    for mark in y_axis.marks():
        y = y_axis.at(mark)
        parts.append(f'<path class="grid" d="M{start} {y:.1f}H{end}"/>')
        parts.append(_text(start - 6, y + 4, short(mark), "small end"))
    parts += [_text(x_axis.at(mark), y_axis.start + 16, short(mark), "small middle") for mark in x_axis.marks()]
    line = "L".join(f"{x_axis.at(x):.1f} {y_axis.at(median):.1f}" for x, _, median, _ in panel.points)
    parts.append(f'<path class="curve" d="M{line}"/>')
    for x, low, median, high in panel.points:
        parts.append(
            f'<path class="range" d="M{x_axis.at(x):.1f} {y_axis.at(low):.1f}V{y_axis.at(high):.1f}"/>'
            f'<circle class="ours" cx="{x_axis.at(x):.1f}" cy="{y_axis.at(median):.1f}" r="3.5"/>'
        )
        parts.append(_text(x_axis.at(x), y_axis.at(high) - 8, short(median), "small middle figure"))
    return parts


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _page(height: float, title: str, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(title)}</title>'
    page = f'<rect class="page" width="{WIDTH}" height="{height:.0f}" rx="6"/>'
    return "\n".join([head, STYLE, page, *parts, "</svg>", ""])
