"""Checks before a recipe trains anything, for ``kdplug run``, ``kdplug plan`` and ``kdplug cache``."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from torch import empty, nn
from torch.utils.data import Subset

from kdplug.config.error_path import in_stage
from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Part, Task
from kdplug.engine.observe.activity import busy
from kdplug.engine.observe.tracking import check_trackers
from kdplug.engine.parallel.process import check_device, process
from kdplug.host.acting import Acting
from kdplug.host.component import Component
from kdplug.recipes.arm import distilled_run
from kdplug.recipes.data import evaluation_loader, sized
from kdplug.recipes.evaluators import build_evaluators
from kdplug.recipes.other_teacher import check_start
from kdplug.recipes.preview.sample import Sample, take_sample
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.saved_student import check_apart
from kdplug.recipes.shuffle import check_shuffled
from kdplug.recipes.stages.shared_cache import with_coding
from kdplug.recipes.stages.student import StageStudents
from kdplug.recipes.task import (
    Resolved,
    build_task,
    check_uncached,
    check_vocabularies,
    prepare,
    required_reads,
    resolve_distillation,
)
from kdplug.recipes.training import Budget, check_writable, make_optimizer
from kdplug.report.curve import check_matplotlib

_FEW = 4
"""Examples of the evaluation before training."""


class CheckedRecipe(NamedTuple):
    """The component that the recipe's ``task`` names, the task, and the resolved distillation."""

    component: Component
    task: Task
    resolved: Resolved


def check_recipe(recipe: Recipe) -> CheckedRecipe:
    """Build the recipe's task, and check what a run needs: names, settings, data, packages, device and folders.

    Nothing is written and no model is built.

    Raises: ``KdplugError`` for the first problem that would make the run fail.
    """
    check_matplotlib()
    check_device(recipe.training.device)
    check_trackers(distilled_run(recipe).config(recipe))
    component, task = build_task(recipe)
    resolved = resolve_distillation(recipe)
    make_optimizer(recipe.training, [nn.Parameter(empty(1))])
    check_apart(recipe, task)
    check_writable(recipe)
    check_uncached(recipe, task)
    check_shuffled(recipe, task)
    check_start(recipe, task)
    if recipe.acting:
        Acting(recipe.acting)
    build_evaluators(recipe)
    _ = RecipeRunner(recipe, task, lambda _: None, show_progress=False).transforms
    prepare(task, required_reads(recipe))
    check_vocabularies(recipe, task)
    for stage in recipe.planned_stages():
        with in_stage(stage):
            make_optimizer(stage.recipe.training, [nn.Parameter(empty(1))])
            check_vocabularies(stage.recipe, task)
    return CheckedRecipe(component, task, resolved)


def rehearse(runner: RecipeRunner) -> Sample | None:
    """Run the first batch of the distillation, or of each stage, through untrained models, and evaluate the student on a
    few examples.

    An error in the first step, or a metric that the task does not have, is therefore raised before anything is trained.
    Warnings are hidden, because the run itself shows them. Return ``None`` if distillation is the first training run.

    Raises: ``KdplugError``.
    """
    if runner.recipe.stages:
        students, shared = with_coding(StageStudents(runner, None, is_untrained=True)), []
        for stage in students.stages:
            with in_stage(stage):
                sample = _sample(students.stage_runner(stage))
            if students.shares_cache(stage):
                shared.append(sample)
        if shared:
            shared[0].also = shared[1:]
        return shared[0] if shared else None
    is_first = runner.fit() is None and not runner.recipe.controls and runner.recipe.metric is None
    if is_first and not runner.recipe.student.transforms:
        return None
    return _sample(runner)


def _sample(runner: RecipeRunner) -> Sample:
    recipe, config = runner.recipe, distilled_run(runner.recipe).config(runner.recipe)
    loader = runner.loader("distillation", recipe.training.batch_size)
    precision = config.precision if "precision" in config.model_fields_set else None
    trying = busy("Trying the first batch with untrained models")
    with trying, warnings.catch_warnings(), process(config.device, precision) as accelerator:
        warnings.simplefilter("ignore")
        sample = take_sample(recipe, runner, accelerator, Budget.of(recipe.training, loader).total_steps)
        part: Part = "validation" if recipe.training.evaluations else "test"
        few = Subset(sized(runner.task, part), range(min(_FEW, len(sized(runner.task, part)))))
        finished = runner.transforms.finished_copy(sample.student)
        runner.evaluate(finished, evaluation_loader(runner.task, few, batch_size=_FEW))
    return sample
