"""Compute the scales, ticks, lines and points of charts, which a template then writes as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 36
_TICKS = 5
_STEPS = (1, 2, 2.5, 5, 10)
_ROW = 34

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis and its position in the drawing."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear or logarithmic map from values to positions in the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of ``value``, rounded to keep files short."""
        low, high, value = (math.log10(one) if self.is_log else one for one in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        """Return round values within the scale."""
        values = _decades(self.low, self.high) if self.is_log else _round_values(self.low, self.high)
        return [Tick(self(value), number(value)) for value in values]


def number(value: float) -> str:
    """Format a tick: ``0.85``, ``1,200``, ``1e-05``."""
    value = 0.0 if abs(value) < 1e-12 else value
    text = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.4g}"
    return f"−{text}" if value < 0 else text


def _round_values(low: float, high: float) -> list[float]:
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in _STEPS if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(decades) < 2:
        decades = [10.0**power * factor for power in powers for factor in (1, 2, 5)]
        decades = [value for value in decades if low <= value <= high]
    return decades if len(decades) <= _TICKS + 2 else decades[:: math.ceil(len(decades) / _TICKS)]


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Return the minimum and the maximum, extended by a margin; equal ones are moved apart."""
    found = list(values)
    low, high = min(found), max(found)
    room = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - room, high + room


@dataclass(frozen=True, slots=True)
class Line:
    """A line or an area: its style, its corners, and the positions of its marks."""

    style: str
    corners: str
    marks: tuple[tuple[float, float], ...] = ()


@dataclass(slots=True)
class Chart:
    """A chart with axes. ``legend`` contains pairs of style and name."""

    key: str
    title: str
    text: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    areas: list[Line] = field(default_factory=list)
    levels: list[tuple[str, float]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Curve:
    """One series to draw. ``marks`` are points of it to emphasize."""

    style: str
    points: Points
    marks: Points = ()


def line_chart(
    key: str,
    title: str,
    text: str,
    labels: tuple[str, str],
    *,
    curves: Sequence[Curve],
    levels: Sequence[tuple[str, float]] = (),
    is_log: bool = False,
) -> Chart:
    """Draw curves over the optimizer steps, and horizontal lines at ``levels``."""
    if is_log:
        curves = [replace(curve, points=[point for point in curve.points if point[1] > 0]) for curve in curves]
    heights = [height for curve in curves for _, height in curve.points] + [value for _, value in levels]
    last = max(step for curve in curves for step, _ in curve.points)
    x = Scale(0, last or 1, LEFT, WIDTH - RIGHT)
    if is_log:
        low, high = min(heights), max(heights)
        y = Scale(low / 1.2, high * 1.2, HEIGHT - BOTTOM, TOP, is_log=True)
    else:
        y = Scale(*padded(heights), HEIGHT - BOTTOM, TOP)
    return Chart(
        key,
        title,
        text,
        *labels,
        x.ticks(),
        y.ticks(),
        lines=[_line(curve, x, y) for curve in curves],
        levels=[(style, y(value)) for style, value in levels],
    )


def _line(curve: Curve, x: Scale, y: Scale) -> Line:
    places = [(x(step), y(value)) for step, value in curve.points]
    marks = [(x(step), y(value)) for step, value in curve.marks]
    return Line(curve.style, _corners(places), tuple(marks + places * (len(places) == 1)))


def share_chart(key: str, title: str, text: str, series: dict[str, Points]) -> Chart:
    """Draw the share of each series in the sum of their absolute values as stacked areas; the keys are styles."""
    by_step: dict[float, dict[str, float]] = {}
    for style, points in series.items():
        for step, value in points:
            by_step.setdefault(step, {})[style] = abs(value)
    steps = sorted(step for step, values in by_step.items() if sum(values.values()) > 0)
    x = Scale(0, steps[-1] or 1, LEFT, WIDTH - RIGHT)
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    below = dict.fromkeys(steps, 0.0)
    areas = []
    for style in series:
        above = {step: below[step] + by_step[step].get(style, 0) / sum(by_step[step].values()) for step in steps}
        outline = [(x(step), y(above[step])) for step in steps] + [(x(step), y(below[step])) for step in steps[::-1]]
        areas.append(Line(style, _corners(outline)))
        below = above
    ticks = [Tick(y(value), f"{100 * value:.0f} %") for value in (0, 0.25, 0.5, 0.75, 1)]
    return Chart(key, title, text, "optimizer step", "share", x.ticks(), ticks, areas=areas)


def _corners(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of a chart of values on a line: an interval (if any), its middle, and points."""

    name: str
    style: str
    y: float
    interval: tuple[float, float] | None
    middle: float | None
    points: tuple[float, ...]
    note: str = ""


@dataclass(slots=True)
class Strips:
    """Rows of values above one axis; ``zero`` and ``margins`` are positions of vertical lines."""

    key: str
    title: str
    text: str
    x_label: str
    height: float
    x_ticks: list[Tick]
    rows: list[Strip]
    zero: float | None = None
    margins: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Values:
    """Values of one row, in the unit of the axis."""

    name: str
    style: str
    middle: float | None = None
    interval: tuple[float, float] | None = None
    points: Sequence[float] = ()
    note: str = ""


def strip_chart(
    key: str,
    title: str,
    text: str,
    x_label: str,
    rows: Sequence[Values],
    *,
    zero: bool = False,
    margin: float | None = None,
) -> Strips:
    """Draw ``rows`` above one horizontal axis, optionally with lines at 0 and at plus and minus ``margin``."""
    values = [value for row in rows for value in (*row.points, *(row.interval or ()))]
    values += [row.middle for row in rows if row.middle is not None]
    lines = ([0.0] if zero else []) + ([-margin, margin] if margin else [])
    x = Scale(*padded([*values, *lines]), 12, WIDTH - 12)
    strips = [
        Strip(
            row.name,
            row.style,
            TOP + _ROW * place + 24,
            None if row.interval is None else (x(row.interval[0]), x(row.interval[1])),
            None if row.middle is None else x(row.middle),
            tuple(map(x, row.points)),
            row.note,
        )
        for place, row in enumerate(rows)
    ]
    height = TOP + _ROW * len(rows) + 40
    margins = tuple(map(x, lines[-2:])) if margin else ()
    return Strips(key, title, text, x_label, height, x.ticks(), strips, x(0) if zero else None, margins)


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: the accuracy in each bin of confidence, and the number of predictions in the bin."""

    key: str
    name: str
    style: str
    error: float | None
    text: str
    bars: list[tuple[float, float, float, int]]
    points: list[tuple[float, float]]
    ticks: list[Tick]
    y_ticks: list[Tick]


def reliability(
    key: str, name: str, style: str, error: float | None, bins: Sequence[tuple[float, float, int]]
) -> Reliability:
    """Draw bins of ``(confidence, accuracy, count)``; the area of a point grows with its count."""
    x, y = Scale(0, 1, 40, 230), Scale(0, 1, 200, 10)
    most = max(count for _, _, count in bins)
    bars = [(x(place), y(right), round(1.5 + 6 * math.sqrt(count / most), 1), count) for place, right, count in bins]
    ticks = [Tick(x(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    y_ticks = [Tick(y(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    parts = ", ".join(f"{right:.2f} at confidence {place:.2f} ({count})" for place, right, count in bins)
    points = [(bar[0], bar[1]) for bar in bars]
    return Reliability(key, name, style, error, f"Accuracy by confidence: {parts}.", bars, points, ticks, y_ticks)
