"""Train the stages of a distilled student one after another, and the control for as many steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from kdplug.config.error_path import in_stage
from kdplug.config.recipe import Recipe
from kdplug.config.stage import Stage
from kdplug.host.bounded_json import json_value
from kdplug.recipes.arm import HISTORY, Arm, ArmRun, student_runs
from kdplug.recipes.history import History
from kdplug.recipes.recipe_runner import RecipeRunner, TrainedStudent
from kdplug.recipes.stages.result import StageResult, begin
from kdplug.recipes.stages.student import StageStudents
from kdplug.recipes.training import Budget
from kdplug.report.file import replacing


def train_stages(students: StageStudents, *, is_cached: bool) -> tuple[TrainedStudent, list[StageResult]]:
    """Train every stage that is not complete, and return the student of the last one and the results of all.

    Its history is that of all stages, with the steps of a stage counted from the end of the one before.
    """
    results, model = [], None
    for stage in students.stages:
        with in_stage(stage):
            result, model = _train(students, stage, is_cached=is_cached)
        results.append(result)
    last = students.stages[-1]
    folder = students.folder(last).parent
    with replacing(folder / HISTORY) as temporary:
        temporary.write_text(_joined(students, results), encoding="utf-8")
    before, seconds = sum(one.steps for one in results[:-1]), [one.seconds for one in results]
    trained = TrainedStudent(
        model=students.student(last) if model is None else model,
        history=History.read(folder),
        steps=before + results[-1].steps,
        best_step=None if results[-1].best_step is None else before + results[-1].best_step,
        seconds=None if None in seconds else sum(cast("list[float]", seconds)),
    )
    return trained, results


def _train(students: StageStudents, stage: Stage, *, is_cached: bool) -> tuple[StageResult, nn.Module | None]:
    """Train a stage unless it is complete; return its result, and its student if it was trained here."""
    runner, folder = students.runner, students.folder(stage)
    found = StageResult.read(folder) if runner.resume else None
    if found is not None:
        runner.say(f"Stage already complete: {stage.name} ({found.steps} optimizer steps in {folder})")
        return found, None
    begin(folder, stage)
    one = students.stage_runner(stage)
    teacher = students.teacher if stage.teacher is None else one.built_teacher()
    trained = one.distilled(teacher, is_cached=is_cached and students.shares_cache(stage))
    step = trained.steps if trained.best_step is None else trained.best_step
    result = StageResult(
        name=stage.name,
        steps=trained.steps,
        best_step=trained.best_step,
        validation=dict(trained.history.validation).get(step, {}),
        seconds=trained.seconds,
    )
    result.write(folder, stage)
    return result, trained.model


def _joined(students: StageStudents, results: Sequence[StageResult]) -> str:
    """Return the histories of all stages as one, each line with the name of its stage."""
    lines, before = [], 0
    for stage, result in zip(students.stages, results, strict=True):
        for text in (students.folder(stage) / HISTORY).read_text(encoding="utf-8").splitlines():
            line = json_value(text)
            lines.append(json.dumps({**line, "step": line["step"] + before, "stage": stage.name}) + "\n")
        before += result.steps
    return "".join(lines)


def stage_steps(students: StageStudents) -> dict[str, int]:
    """Return the number of optimizer steps of each stage, by name."""
    return {stage.name: _budget(students, stage).total_steps for stage in students.stages}


def _budget(students: StageStudents, stage: Stage) -> Budget:
    training, runner = stage.recipe.training, replace(students.runner, task=students.task(stage))
    return Budget.of(training, runner.loader("distillation", training.batch_size))


def total_steps(runner: RecipeRunner) -> int:
    """Return the number of optimizer steps of each student: with stages, of all of them together."""
    if not runner.recipe.stages:
        training = runner.recipe.training
        return Budget.of(training, runner.loader("distillation", training.batch_size)).total_steps
    return sum(stage_steps(StageStudents(runner, None)).values())


def control_recipe(runner: RecipeRunner) -> Recipe:
    """Return the recipe that a control is trained with: with stages, for the steps of all of them together."""
    recipe = runner.recipe
    if not recipe.stages:
        return recipe
    training = recipe.training
    changes: dict[str, object] = {"num_steps": total_steps(runner), "num_epochs": None}
    if training.ckpt_steps is None and training.ckpt_frequency:
        loader = runner.loader("distillation", training.batch_size)
        epoch = Budget.of(training.model_copy(update={"num_epochs": 1, "num_steps": None}), loader).total_steps
        every = epoch * training.ckpt_epoch_frequency // training.ckpt_frequency
        changes["ckpt_steps"] = max(1, every)
    return recipe.model_copy(update={"stages": (), "training": training.model_copy(update=changes)})


def planned_runs(runner: RecipeRunner) -> list[tuple[ArmRun, Recipe]]:
    """Return the training runs of all students, each stage by itself, and the recipe of each."""
    recipe, control = runner.recipe, control_recipe(runner)
    found: list[tuple[ArmRun, Recipe]] = []
    for run in student_runs(recipe):
        if run.arm is not Arm.DISTILLED or not recipe.stages:
            found.append((run, control))
        else:
            found += [(replace(run, stage=stage.name), stage.recipe) for stage in recipe.planned_stages()]
    return found
