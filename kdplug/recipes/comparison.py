"""Compare the arms of a recipe by their predictions for each test example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.evidence.figures import agreement, calibration, confusion, disagreements, gap_closed, per_class
from kdplug.evidence.verdict import Verdict, verdict
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
        for arm in Arm
    }
    details = {arm: _details(found, target) for arm, found in rows.items() if found and target is not None}
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
        verdict=_verdict(recipe, metric, runs, rows) if values[Arm.NO_TEACHER] else None,
        gap_closed=closed,
        teacher_worse=teacher is not None and better_control(metric, runs, teacher) is not None,
        agreement=agreed,
        disagreements=differing,
        details=details,
    )


def better_control(metric: MetricOf, runs: Mapping[ArmRun, RunFigures], teacher: RunFigures) -> float | None:
    """Return the students' mean on the validation part without distillation if it is better than the teacher's value."""
    found = [run.validation.get(metric.name, math.nan) for run in _of(runs, Arm.NO_TEACHER)]
    own = teacher.validation.get(metric.name, math.nan)
    return mean(found) if found and metric.is_better(mean(found), own) else None


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


def _verdict(
    recipe: Recipe, metric: MetricOf, runs: Mapping[ArmRun, RunFigures], rows: Mapping[Arm, Rows]
) -> Verdict | None:
    """Return the verdict on the seeds that both arms have, or ``None`` if they have none in common."""
    arms = (Arm.DISTILLED, Arm.NO_TEACHER)
    seeds = set.intersection(*({run.seed for run in _of(runs, arm)} for arm in arms))
    if not seeds:
        return None
    sides = [[row for row in rows[arm] if row["seed"] in seeds] for arm in arms]
    aggregate = _of(runs, Arm.DISTILLED)[0].aggregate
    if metric.is_own and aggregate is not None and all(sides):
        return verdict(
            *sides,
            is_lower_better=metric.is_lower_better,
            aggregate=aggregate,  # type: ignore[arg-type]
            margin=recipe.margin,
            metric=metric.name,
        )
    why = (
        "the task does not return predictions for each example"
        if aggregate is None
        else f"the task returns scores of each example for its main metric, not for {metric.name}"
    )
    one, other = (
        mean(run.metrics.get(metric.name, math.nan) for run in _of(runs, arm) if run.seed in seeds) for arm in arms
    )
    return Verdict(
        outcome="CANNOT TELL",
        reason=why,
        difference=(other - one) if metric.is_lower_better else (one - other),
        scale=metric.name,
        margin=recipe.margin,
        seeds=len(seeds),
        units=0,
        means=(one, other),
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
