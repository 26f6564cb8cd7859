"""``kdplug cache``: precompute a recipe's teacher outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kdplug.config.error_path import qualify_errors
from kdplug.config.recipe import Recipe
from kdplug.engine.cache.summary import CacheSummary
from kdplug.engine.checkpoint.fingerprint import dataset_fingerprint
from kdplug.engine.observe.activity import busy
from kdplug.errors import RunError
from kdplug.host.manifest import header_line
from kdplug.host.name import printable
from kdplug.recipes.arm import Arm
from kdplug.recipes.arms_run import teacher_figures
from kdplug.recipes.cache_provenance import CacheProvenance
from kdplug.recipes.other_teacher import check_start
from kdplug.recipes.preflight import rehearse
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.saved_student import save_teacher
from kdplug.recipes.stages.shared_cache import check_cache, fill_cache
from kdplug.recipes.task import (
    build_task,
    check_uncached,
    check_vocabularies,
    prepare,
    required_reads,
    resolve_distillation,
)
from kdplug.recipes.training import check_cache_folder
from kdplug.report.record import run_record


@qualify_errors
def cache_recipe(recipe: Recipe, out: Path, *, console: Console | None = None) -> CacheSummary:
    """Run a recipe's teacher on every distillation example, and store its outputs in ``out``.

    An interrupted cache in ``out`` is resumed. If the recipe trains its teacher, the teacher's checkpoints go to
    ``out/teacher``, and the trained teacher too if the task can save it. Under ``accelerate launch`` or ``torchrun`` the processes divide the examples. At the end the
    teacher is evaluated, so that ``run_recipe`` with this cache does not need it for the comparison.

    Raises: ``KdplugError`` if the recipe names an unusable entry or file, or ``out`` holds a cache built from
    different inputs or cannot be written.
    """
    is_main = os.environ.get("RANK", "0") in ("", "0")
    console = console if console is not None and is_main else Console(quiet=True)
    recipe = recipe.with_overrides(
        [f"training.teacher_cache={json.dumps(str(out))}", "distillation.is_caching_logits=true"]
    )
    with busy("Filling the teacher cache", shown=not console.quiet):
        return _fill(recipe, out, console, is_main=is_main)


def _fill(recipe: Recipe, out: Path, console: Console, *, is_main: bool) -> CacheSummary:
    component, task = build_task(recipe)
    check_uncached(recipe, task)
    check_cache_folder(recipe)
    resolved = resolve_distillation(recipe)
    prepare(task, required_reads(recipe))
    check_vocabularies(recipe, task)
    check_start(recipe, task)
    _check_fit(fits=recipe.has_task_teacher and task.teacher_fit() is not None)

    def say(text: str) -> None:
        console.print(Text(printable(text)), soft_wrap=True)

    runner = RecipeRunner(recipe, task, say, show_progress=not console.quiet, resume=True)
    check_cache(runner)
    rehearse(runner)
    for line in (header_line(), "", task.about(), ""):
        say(line)
    teacher = runner.teacher(out)
    if teacher is not None and runner.fit() is not None:
        record = run_record(recipe, component.qualified_spec(), resolved.distillation)
        if save_teacher(task, teacher, out / Arm.TEACHER, record):
            say(f"Trained teacher saved to {out / Arm.TEACHER}")
    say(f"Running the teacher on {len(task.data('distillation')):,} examples")  # type: ignore[arg-type]
    summary = fill_cache(runner, teacher)
    if is_main and teacher is not None:
        found, rows = teacher_figures(runner, teacher)
        (figures,) = runner.measured(teacher)
        with busy("Hashing the data"):
            test = dataset_fingerprint(task.data("test"))
        origin = CacheProvenance(task.metric, found.metrics, figures, test)
        found.write(out / Arm.TEACHER, origin.identity, rows)
        origin.write(out)
        say(f"The teacher's {task.metric}: {found.metrics[task.metric]:.4f}")
    if is_main:
        say(
            f"Written to {out}. To train without running the teacher: kdplug run RECIPE --set training.teacher_cache={out} "
            "--set distillation.is_caching_logits=true, with every other --set of this command"
        )
    return summary


def _check_fit(*, fits: bool) -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if fits and processes not in ("", "1"):
        raise RunError(
            f"{processes} processes were launched, but the recipe's teacher must be trained first, in a single "
            "process. Run kdplug cache without a launcher"
        )
