"""Draw ``curves.png``: loss terms and validation metrics over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdplug.errors import RunError
from kdplug.report.file import replacing

CURVES = "curves.png"
"""Name of the file."""

Series = Sequence[tuple[float, float]]
"""Pairs of an optimizer step and the value at it."""


_LONGEST_NAME = 30


def check_matplotlib() -> None:
    """Check that curves can be drawn. Raises: ``RunError`` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise RunError('drawing curves.png needs matplotlib. Install it: pip install "kdplug[report]"')


def draw_run_curves(output_dir: Path) -> Path:
    """Draw ``curves.png`` of the completed run in ``output_dir`` from its files, and return its path.

    The upper half shows the weighted terms of the distillation. The lower half shows the validation metric of each
    student, and that of the teacher as a horizontal line. With several seeds, a thin line shows each seed and a thick
    line their mean. A half without data is omitted.

    Raises: ``RunError`` if matplotlib is not installed, or a file of the run is missing or damaged.
    """
    check_matplotlib()
    from kdplug.report.page.results import DISTILLED, NAMES, TEACHER
    from kdplug.report.page.run import read_run

    run = read_run(output_dir)
    results, students = run.results, [name for name in NAMES if name != TEACHER]
    distilled = [one for (arm, _), one in run.histories.items() if arm == DISTILLED]
    terms = {
        short_name(name): [one.terms[name] for one in distilled if name in one.terms]
        for name in dict.fromkeys(name for one in distilled for name in one.terms)
    }
    validation = {
        NAMES[name]: [one.validation for (arm, _), one in run.histories.items() if arm == name and one.validation]
        for name in students
    }
    of_teacher = (results.arms[TEACHER].runs[0].validation or {}) if TEACHER in results.arms else {}
    level = of_teacher.get(results.metric)
    is_weighted = all(one.is_weighted for one in distilled)
    better = "lower" if results.is_lower_better else "higher"
    path = output_dir / CURVES
    _draw(
        path,
        f"{run.task}: {results.metric} on validation ({better} is better)",
        ("weighted loss term" if is_weighted else "unweighted loss term", results.metric),
        (terms, {name: seeds for name, seeds in validation.items() if seeds}),
        {NAMES[TEACHER]: level} if level is not None else {},
    )
    return path


def short_name(name: str) -> str:
    """Return a term's name without its distribution, truncated if long."""
    name = name.rpartition(":")[2]
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


Curves = Mapping[str, Sequence[Series]]


def _draw(
    path: Path, title: str, labels: tuple[str, str], halves: tuple[Curves, Curves], levels: Mapping[str, float]
) -> None:
    from matplotlib.figure import Figure

    shown = [(label, curves) for label, curves in zip(labels, halves, strict=True) if curves]
    figure = Figure(figsize=(7, 1 + 2.6 * max(1, len(shown))), layout="constrained")
    figure.suptitle(title, fontsize="medium", parse_math=False)
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, curves) in zip(axes, shown, strict=False):
        _draw_half(axis, curves, levels if curves is halves[1] else {})
        axis.set_ylabel(label, parse_math=False)
    axes[-1].set_xlabel("optimizer step")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_half(axis: Any, curves: Curves, levels: Mapping[str, float]) -> None:
    from kdplug.report.page.section.curves import mean_curve

    for place, (name, seeds) in enumerate(curves.items()):
        colour = f"C{place % 10}"
        for series in seeds if len(seeds) > 1 else ():
            axis.plot(*_columns(series), linewidth=0.6, alpha=0.6, color=colour)
        mean = mean_curve(list(map(list, seeds)))
        axis.plot(*_columns(mean), label=name, linewidth=1.6, color=colour)
    for name, value in levels.items():
        axis.axhline(value, label=name, linestyle="--", linewidth=1, color="0.4")
    values = [value for seeds in curves.values() for series in seeds for _, value in series]
    if not levels and min(values) > 0 and max(values) > 20 * min(values):
        axis.set_yscale("log")
    for text in axis.legend(fontsize="small").get_texts():
        text.set_parse_math(False)


def _columns(series: Series) -> tuple[list[float], list[float]]:
    return [step for step, _ in series], [value for _, value in series]
