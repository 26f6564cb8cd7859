"""Draw ``curves.png``: losses and the student's metric over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from kdplug.errors import RunError
from kdplug.report.file import replacing

Series = Sequence[tuple[int, float]]
"""Optimizer steps and a value at each."""


def check_matplotlib() -> None:
    """Check that curves can be drawn. Raises: ``RunError`` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise RunError('curves.png needs matplotlib: pip install "kdplug[report]"')


def draw_curves(
    path: Path, terms: Mapping[str, Series], metric: str, student: Series, lines: Mapping[str, float]
) -> None:
    """Write ``path``: each unweighted term over the steps, and below it the student's metric.

    ``lines`` are metrics of other models, drawn as horizontal lines. The axis of the terms is logarithmic, and omits
    points at 0, unless a term is negative.

    Raises: ``RunError`` if matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which keeps global state and selects a display

    figure = Figure(figsize=(7, 6), layout="constrained")
    losses, scores = figure.subplots(2, 1, sharex=True)
    for name, series in terms.items():
        losses.plot(*_columns(series), label=name, linewidth=1)
    values = [value for series in terms.values() for _, value in series]
    if min(values) >= 0 < max(values):
        losses.set_yscale("log", nonpositive="mask")
    losses.set_ylabel("loss term, unweighted")
    losses.legend(fontsize="small")
    scores.plot(*_columns(student), label="student, distilled", marker="o", markersize=3)
    for place, (name, value) in enumerate(lines.items(), 1):
        scores.axhline(value, label=name, linestyle="--", linewidth=1, color=f"C{place}")
    scores.set_ylabel(metric)
    scores.set_xlabel("optimizer step")
    scores.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _columns(series: Series) -> tuple[list[int], list[float]]:
    return [step for step, _ in series], [value for _, value in series]
