"""Report section: the table that compares teacher, controls and distilled student, and the metric of each seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from kdplug.report.page.chart import Strips, Values, strip_chart
from kdplug.report.page.results import DISTILLED, NAMES, ArmResults, Results, Run
from kdplug.report.table import duration, file_size

Cell = tuple[str, str]
"""A value and a smaller text after it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A value for each arm."""

    name: str
    cells: list[Cell]
    is_main: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under one heading."""

    name: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class ArmTable:
    """The columns (style and name of each arm), and groups of rows."""

    arms: list[tuple[str, str]]
    groups: list[Group]


def arm_table(results: Results) -> ArmTable:
    """Return the table of a run; rows without any value are omitted."""
    arms = results.ordered
    groups = [
        Group(f"Test part{_count(results)}", list(_metrics(results, arms))),
        Group("Model", list(_model(results, arms))),
        Group("Evaluators", list(_evaluators(arms))),
        Group("Cost of each run", list(_cost(arms))),
    ]
    return ArmTable([(f"arm-{name}", NAMES[name]) for name in arms], [group for group in groups if group.rows])


def _count(results: Results) -> str:
    count = results.parts.get("test")
    return "" if count is None else f" ({count:,} example{'s' * (count != 1)})"


def _metrics(results: Results, arms: dict[str, ArmResults]) -> Iterator[Row]:
    names = [results.metric, *(name for name in results.arms[DISTILLED].metrics if name != results.metric)]
    for name in names:
        cells = [figure(arm.metrics.get(name), (arm.sd or {}).get(name)) for arm in arms.values()]
        better = f" ({'lower' if results.is_lower_better else 'higher'} is better)" if name == results.metric else ""
        yield Row(f"{name}{better}", cells, is_main=name == results.metric)
    errors = [(arm.calibration.error if arm.calibration else None) for arm in arms.values()]
    yield from _row("calibration error", [figure(error, None) for error in errors])
    if results.gap_closed is not None:
        cells = [(f"{100 * results.gap_closed:.0f} %" if name == DISTILLED else "", "") for name in arms]
        yield Row("gap to the teacher closed", cells)
    means = [_mean([(run.validation or {}).get(results.metric) for run in arm.runs]) for arm in arms.values()]
    yield from _row(f"{results.metric} on validation", [figure(mean, None) for mean in means])


def _model(results: Results, arms: dict[str, ArmResults]) -> Iterator[Row]:
    def row(name: str, read: Callable[[ArmResults], float | None], write: Callable[[float], str]) -> Iterator[Row]:
        values = [read(arm) for arm in arms.values()]
        return _row(name, [("" if value is None else write(value), "") for value in values])

    yield from row("parameters", lambda arm: arm.parameters, lambda value: f"{value:,}")
    yield from row("size on disk", lambda arm: arm.bytes, lambda value: file_size(int(value)))
    yield from row("time per example", lambda arm: arm.seconds_per_example, duration)
    yield from row(f"{results.unit} per second", lambda arm: arm.units_per_second, _speed)


def _cost(arms: dict[str, ArmResults]) -> Iterator[Row]:
    def row(name: str, read: Callable[[Run], float | None], write: Callable[[float], str]) -> Iterator[Row]:
        return _row(name, [(_range([read(run) for run in arm.runs], write), "") for arm in arms.values()])

    yield from _row("seeds", [(", ".join(str(run.seed) for run in arm.runs), "") for arm in arms.values()])
    yield from row("optimizer steps", lambda run: run.steps, _whole)
    yield from row("step of the best validation", lambda run: run.best_step, _whole)
    yield from row("examples seen", lambda run: run.examples, _whole)
    yield from row("examples with labels", lambda run: run.labelled, _whole)
    yield from row("training time", lambda run: run.seconds, duration)
    yield from row("peak memory", lambda run: run.peak_memory, lambda value: file_size(int(value)))


def _row(name: str, cells: Sequence[Cell]) -> Iterator[Row]:
    if any(text for text, _ in cells):
        yield Row(name, list(cells))


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _range(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = write(min(known)), write(max(known))
    return low if low == high else f"{low} – {high}"


def figure(value: float | None, sd: float | None) -> Cell:
    """Format a metric and its standard deviation over seeds with the same number of decimals."""
    if value is None:
        return "", ""
    if not math.isfinite(value):
        return "not finite", ""
    decimals = 4 if abs(value) < 10 else 2
    spread = "" if sd is None or not math.isfinite(sd) else f"± {sd:.{decimals}f}"
    return f"{value:.{decimals}f}".replace("-", "−"), spread


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _evaluators(arms: dict[str, ArmResults]) -> Iterator[Row]:
    """Yield a row for each figure of each evaluator: its mean over seeds and its standard deviation."""
    runs = [run for arm in arms.values() for run in arm.runs]
    names = dict.fromkeys((one, name) for run in runs for one, figures in run.evaluators.items() for name in figures)
    for one, name in names:
        yield Row(f"{one}: {name}", [_over_seeds(arm, one, name) for arm in arms.values()])


def _over_seeds(arm: ArmResults, evaluator: str, name: str) -> Cell:
    found = [figures[name] for run in arm.runs if name in (figures := run.evaluators.get(evaluator, {}))]
    values = [math.nan if value is None else value for value in found]
    if not values:
        return "", ""
    if not all(map(math.isfinite, values)):
        return "not finite", ""
    spread = f"± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}".replace("-", "−"), spread


def seed_chart(results: Results, key: str = "seeds") -> Strips | None:
    """Draw the main metric of each seed of each arm."""
    rows = []
    for name, arm in results.ordered.items():
        points = [run.metrics.get(results.metric) for run in arm.runs]
        known = [point for point in points if point is not None and math.isfinite(point)]
        if known:
            rows.append(Values(NAMES[name], f"arm-{name}", sum(known) / len(known), None, known))
    if not rows:
        return None
    text = "; ".join(f"{row.name}: {', '.join(figure(point, None)[0] for point in row.points)}" for row in rows)
    better = "left" if results.is_lower_better else "right"
    return strip_chart(
        key,
        f"{results.metric} of each seed on the test part",
        f"{text}.",
        f"{results.metric}; better to the {better}",
        rows,
    )
