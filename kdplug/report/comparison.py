"""The last thing a run prints: what distillation was worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One model: the metric, its parameters, and the seconds that one example takes it."""

    model: str
    metric: float
    parameters: int
    seconds_per_example: float


def comparison(metric: str, lines: Iterable[Line]) -> Table:
    """A table with one row for each model; ``metric`` heads the column of figures."""
    table = Table(header_style="bold")
    table.add_column("model")
    for column in (metric, "parameters", "time per example"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(line.model, f"{line.metric:.4f}", f"{line.parameters:,}", duration(line.seconds_per_example))
    return table


def duration(seconds: float) -> str:
    """Three significant digits in the unit that fits: ``12.3 µs``, ``4.56 ms``, ``1.2 s``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
