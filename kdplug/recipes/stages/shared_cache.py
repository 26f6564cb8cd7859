"""One cache of the teacher's outputs for all stages that read them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from kdplug.config.stage import Stage
from kdplug.contracts.sparse_logits import distinct
from kdplug.distillers.session import coding
from kdplug.engine.cache.coding import Coding
from kdplug.engine.cache.summary import CacheSummary
from kdplug.engine.parallel.process import process
from kdplug.recipes.preview.sample import take_sample
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.stages.student import StageStudents
from kdplug.recipes.training import Budget

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective


def check_cache(runner: RecipeRunner) -> None:
    """Check, as far as possible without building models, that the teacher cache was built from this recipe.

    Raises: ``RunError`` that lists the differences.
    """
    if not runner.recipe.stages:
        runner.check_cache()
        return
    students = with_coding(StageStudents(runner, None))
    for stage in _sharing(students):
        students.stage_runner(stage).check_cache()


def with_coding(students: StageStudents) -> StageStudents:
    """Return the students with the encoding of a cache that serves the temperatures of all stages that share it."""
    found = []
    for stage in _sharing(students):
        config = students.run(stage).config(stage.recipe)
        if (
            stage.recipe.distillation.is_caching_logits
            and (own := coding(config, stage.recipe.distillation)) is not None
        ):
            found.append(own)
    return replace(students, coding=_combined(found))


def _combined(codings: list[Coding]) -> Coding | None:
    if not codings or not codings[0].codec.uses_temperature:
        return codings[0] if codings else None
    first, *others = distinct(temperature for one in codings for temperature in (one.temperature, *one.others))
    return replace(codings[0], temperature=first, others=tuple(others))


def fill_cache(runner: RecipeRunner, teacher: nn.Module | None) -> CacheSummary:
    """Run the teacher on every example and store what the recipe reads; with stages, what any of them reads.

    Raises: ``KdplugError`` for data, outputs or a folder that cannot be used.
    """
    if not runner.recipe.stages:
        distiller = runner.distiller(teacher, runner.student(teacher))
        return distiller.fill_teacher_cache(runner.loader("distillation", runner.recipe.training.batch_size))
    students = with_coding(StageStudents(runner, teacher, is_untrained=True))
    first, *others = _sharing(students)
    one = students.stage_runner(first)
    distiller = one.distiller(teacher, students.start(first))
    assert distiller.teacher_cache is not None
    distiller.teacher_cache.also = tuple(_objective(students, stage) for stage in others)
    return distiller.fill_teacher_cache(one.loader("distillation", runner.recipe.training.batch_size))


def _objective(students: StageStudents, stage: Stage) -> Objective:
    """Return the objective of a stage with all widths and layers that the first batch shows."""
    runner = students.stage_runner(stage)
    config = students.run(stage).config(stage.recipe)
    loader = runner.loader("distillation", stage.recipe.training.batch_size)
    precision = config.precision if "precision" in config.model_fields_set else None
    with process(config.device, precision) as accelerator:
        return take_sample(
            stage.recipe, runner, accelerator, Budget.of(stage.recipe.training, loader).total_steps
        ).objective


def _sharing(students: StageStudents) -> list[Stage]:
    return [stage for stage in students.stages if students.shares_cache(stage)]


def runs_teacher(runner: RecipeRunner) -> bool:
    """Return whether a stage runs the task's teacher although its outputs are cached, since its batches are others."""
    students = StageStudents(runner, None)
    return any(stage.teacher is None and not students.shares_cache(stage) for stage in students.stages)
