"""The last thing a run prints: what distillation was worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One model: the metric, its parameters, the seconds that one example takes it, its bytes on disk, and units per second."""

    model: str
    metric: float
    parameters: int
    seconds_per_example: float
    bytes: int
    units_per_second: float


def comparison(metric: str, unit: str, lines: Iterable[Line]) -> Table:
    """A table with one row for each model; ``metric`` heads the column of figures, and ``unit`` is what is counted per second."""
    table = Table(header_style="bold")
    table.add_column("model")
    for column in (metric, "parameters", "time per example", "size on disk", f"{unit}/s"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(
            line.model,
            f"{line.metric:.4f}",
            f"{line.parameters:,}",
            duration(line.seconds_per_example),
            file_size(line.bytes),
            f"{line.units_per_second:,.3g}" if line.units_per_second < 1000 else f"{line.units_per_second:,.0f}",
        )
    return table


def file_size(count: int) -> str:
    """Three significant digits in the unit that fits: ``12.6 kB``, ``440 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Three significant digits in the unit that fits: ``12.3 µs``, ``4.56 ms``, ``1.2 s``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
