"""Compare the arms of a recipe by their predictions for each test example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.evidence.figures import agreement, calibration, confusion, disagreements, gap_closed, per_class
from kdplug.evidence.macro_f1 import MACRO_F1, macro_f1
from kdplug.evidence.rows import checked_rows
from kdplug.evidence.verdict import Verdict, aggregated, verdict, verdict_on_values
from kdplug.recipes.arm import PREDICTIONS, Arm, ArmRun
from kdplug.recipes.result import Comparison, RunFigures, read_rows, write_rows
from kdplug.recipes.task import MetricOf

Rows = list[dict[str, Any]]


def compare(
    recipe: Recipe, metric: MetricOf, runs: Mapping[ArmRun, RunFigures], teacher: RunFigures | None
) -> Comparison:
    """Compare the arms whose runs are complete. Arms are compared over the seeds that both have."""
    rows = {arm: _rows(recipe, runs, arm) for arm in Arm}
    target = next((run.target for run in runs.values() if run.target is not None), None)
    shared = set.intersection(*({run.seed for run in _of(runs, arm)} for arm in (Arm.DISTILLED, Arm.NO_TEACHER)))
    values = {
        arm: [
            run.metrics.get(metric.name, math.nan) for run in _of(runs, arm) if arm is Arm.TEACHER or run.seed in shared
        ]
        for arm in (Arm.TEACHER, Arm.NO_TEACHER, Arm.DISTILLED)
    }
    details = {arm: _details(found, target) for arm, found in rows.items() if found and target is not None}
    aggregate = _aggregate(metric, runs, rows)
    distilled, of_teacher = rows[Arm.DISTILLED], rows[Arm.TEACHER]
    agreed = differing = None
    if distilled and of_teacher and target is not None:
        agreed = agreement(distilled, of_teacher, target)  # type: ignore[arg-type]
        found = disagreements(distilled, of_teacher, target)  # type: ignore[arg-type]
        differing = None if found is None else len(found)
    closed = None
    if all(values.values()):
        distilled_mean, control, own = (mean(values[arm]) for arm in (Arm.DISTILLED, Arm.NO_TEACHER, Arm.TEACHER))
        closed = gap_closed(distilled_mean, control, own, metric.is_lower_better)
    return Comparison(
        aggregate=aggregate,
        verdict=_verdict(recipe, metric, runs, rows, Arm.NO_TEACHER, aggregate=aggregate),
        example_level=_verdict(recipe, metric, runs, rows, Arm.SHUFFLED, aggregate=aggregate),
        singletons=max((run.singletons or 0.0 for run in _of(runs, Arm.SHUFFLED)), default=None),
        gap_closed=closed,
        teacher_worse=teacher is not None and _is_worse(metric, runs, teacher),
        has_validation=teacher is not None and bool(teacher.validation),
        agreement=agreed,
        disagreements=differing,
        details=details,
    )


def better_control(metric: MetricOf, runs: Mapping[ArmRun, RunFigures], teacher: RunFigures) -> float | None:
    """Return the mean validation metric of the students without distillation if it is better than the teacher's."""
    found = [run.validation.get(metric.name, math.nan) for run in _of(runs, Arm.NO_TEACHER)]
    own = teacher.validation.get(metric.name, math.nan)
    return mean(found) if found and metric.is_better(mean(found), own) else None


def _is_worse(metric: MetricOf, runs: Mapping[ArmRun, RunFigures], teacher: RunFigures) -> bool:
    """Return whether the teacher is worse than the students without distillation; without evaluations, on the test part."""
    if teacher.validation:
        return better_control(metric, runs, teacher) is not None
    found = [run.metrics.get(metric.name, math.nan) for run in _of(runs, Arm.NO_TEACHER)]
    return bool(found) and metric.is_better(mean(found), teacher.metrics.get(metric.name, math.nan))


def _of(runs: Mapping[ArmRun, RunFigures], arm: Arm) -> list[RunFigures]:
    return [figures for run, figures in runs.items() if run.arm is arm]


def _rows(recipe: Recipe, runs: Mapping[ArmRun, RunFigures], arm: Arm) -> Rows:
    return [
        {"arm": arm.value, "seed": run.seed, **row}
        for run in runs
        if run.arm is arm
        for row in read_rows(run.folder(Path(recipe.output_dir)) / PREDICTIONS)
    ]


def _details(rows: Rows, target: str) -> dict[str, Any]:
    found = {
        "per_class": per_class(rows, target),  # type: ignore[arg-type]
        "confusion": confusion(rows, target),  # type: ignore[arg-type]
        "calibration": calibration(rows, target),  # type: ignore[arg-type]
    }
    return {name: value for name, value in found.items() if value is not None}


def _aggregate(metric: MetricOf, runs: Mapping[ArmRun, RunFigures], rows: Mapping[Arm, Rows]) -> str | None:
    """Return how the metric follows from the predictions, or ``None`` if it does not follow from them.

    The task's main metric follows from the scores, if they give the value that the task returned for each run. Macro F1 follows from labels and predictions, if it has the value that the
    task returned for each run.
    """
    known = [run for run in runs.values() if run.aggregate is not None]
    if not known:
        return None
    if metric.is_own:
        follows = all(_follows(run, [row for row in rows[run.arm] if row["seed"] == run.seed], metric) for run in known)
        return _of(runs, Arm.DISTILLED)[0].aggregate if follows else None
    if metric.name != MACRO_F1:
        return None
    for run in known:
        own = [row for row in rows[run.arm] if row["seed"] == run.seed]
        if any(row.get("label") is None or row.get("prediction") is None for row in own):
            return None
        if not math.isclose(macro_f1(checked_rows(own, "rows")), run.metrics[MACRO_F1], rel_tol=1e-5, abs_tol=1e-6):
            return None
    return MACRO_F1


def _follows(run: RunFigures, rows: Rows, metric: MetricOf) -> bool:
    """Return whether the scores of a run give its metric; true if one of the two is not finite."""
    value, expected = aggregated(rows, run.aggregate), run.metrics.get(metric.name, math.nan)  # type: ignore[arg-type]
    is_known = math.isfinite(value) and math.isfinite(expected)
    return not is_known or math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-5)


def _verdict(
    recipe: Recipe,
    metric: MetricOf,
    runs: Mapping[ArmRun, RunFigures],
    rows: Mapping[Arm, Rows],
    control: Arm,
    *,
    aggregate: str | None,
) -> Verdict | None:
    """Return the verdict on distillation and a control, over the seeds that both have; ``None`` without any."""
    arms = (Arm.DISTILLED, control)
    values = [{run.seed: run.metrics.get(metric.name, math.nan) for run in _of(runs, arm)} for arm in arms]
    seeds = [seed for seed in values[0] if seed in values[1]]
    if not seeds:
        return None
    sides = [[row for row in rows[arm] if row["seed"] in seeds] for arm in arms]
    if aggregate is not None and all(sides):
        return verdict(
            *sides,
            is_lower_better=metric.is_lower_better,
            aggregate=aggregate,  # type: ignore[arg-type]
            margin=recipe.margin,
            metric=metric.name,
        )
    why = f"the task returns scores of each example for its main metric, not for {metric.name}"
    if _of(runs, Arm.DISTILLED)[0].aggregate is None:
        why = "the task does not return predictions for each example"
    elif metric.is_own:
        why = f"the scores in the task's predictions do not give its {metric.name}"
    one, other = ({seed: found[seed] for seed in seeds} for found in values)
    return verdict_on_values(
        one, other, why=why, is_lower_better=metric.is_lower_better, margin=recipe.margin, metric=metric.name
    )


def write_predictions(recipe: Recipe, file: Path, runs: Sequence[ArmRun]) -> None:
    """Write the predictions of all runs into one file, with the arm and the seed of each."""
    write_rows(
        file,
        (
            {"arm": run.arm.value, "seed": run.seed, **row}
            for run in runs
            for row in read_rows(run.folder(Path(recipe.output_dir)) / PREDICTIONS)
        ),
    )
