"""From a recipe to its results."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.text import Text
from safetensors.torch import save_model
from torch import empty, nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Task
from kdplug.engine.checkpoint import STUDENT
from kdplug.errors import ConfigError, KdplugError, RunError
from kdplug.host.component import Component
from kdplug.host.lock import check_locked
from kdplug.host.manifest import header_line
from kdplug.host.registry import tasks
from kdplug.objective.objective import Objective
from kdplug.recipes.bench import Bench
from kdplug.recipes.optimizer import make_optimizer
from kdplug.recipes.result import CURVES, METRICS, RecipeResult
from kdplug.report.comparison import comparison
from kdplug.report.curve import check_matplotlib, draw_curves
from kdplug.report.file import replacing, write_json
from kdplug.report.record import RECORD, run_record
from kdplug.report.term import temperature_line, terms_table

FILES = (RECORD, METRICS, STUDENT, CURVES)
"""What a run writes into its folder."""


def run_recipe(recipe: Recipe, *, console: Console | None = None, locked: Path | None = None) -> RecipeResult:
    """Fit the teacher, distil it into the student, train the same student without it, and compare the three.

    Writes ``kdplug-run.json``, ``metrics.json``, ``student.safetensors`` and ``curves.png`` into the recipe's
    ``output_dir``, in place of those of an earlier run. ``console`` is where sentences and tables go, nowhere by default.
    ``locked`` is the ``kdplug-run.json`` of a run that this one must be again.

    Raises: ``KdplugError`` where the recipe names what cannot be used, or a run cannot start or go on.
    """
    console = console or Console(quiet=True)

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    _check_alone()
    check_matplotlib()
    component, task = _task(recipe)
    distillation, terms = _resolved(recipe)
    make_optimizer(recipe.training, [nn.Parameter(empty(1))])  # what is wrong with it should not wait for the teacher
    record = run_record(recipe, component.qualified_spec(), distillation)
    if locked is not None:
        check_locked(locked, record)
    output_dir = _emptied(Path(recipe.output_dir))
    write_json(output_dir / RECORD, record)
    for line in (header_line(), "", task.about(), "", temperature_line(distillation)):
        say(line)
    console.print(terms_table(distillation, terms))

    bench = Bench(recipe, task, say, show_progress=not console.quiet)
    teacher = bench.teacher()
    student, history = bench.distilled(teacher)
    baseline, steps = bench.baseline()
    of_teacher, of_student, of_baseline = bench.measured(teacher, student, baseline)
    result = RecipeResult(task.metric, of_teacher, of_student, of_baseline, steps, output_dir)

    with replacing(output_dir / STUDENT) as temporary:
        save_model(student, str(temporary))
    write_json(output_dir / METRICS, result.to_data())
    draw_curves(output_dir / CURVES, history.terms, task.metric, history.student, result.levels())
    console.print(comparison(result.metric, result.lines()))
    batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    say(f"Both students: the same initial weights, {steps} optimizer steps, batches of {batch}.")
    say(f"Written to {output_dir}: {', '.join(FILES)}")
    return result


def _check_alone() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise RunError(
            f"a recipe runs in one process, and {processes} were launched. For several, call kdplug.GeneralDistiller in a "
            "script of your own and start that with accelerate launch"
        )


def _task(recipe: Recipe) -> tuple[Component, Task]:
    try:
        component = tasks.build(recipe.task)
    except KdplugError as error:
        raise error.at("task") from error.__cause__
    task = component.target
    if not isinstance(task, Task):
        lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(task, name)]
        raise ConfigError(f"{component.entry.qualified} is no task: it lacks {', '.join(lacking)}", field="task")
    return component, task


def _resolved(recipe: Recipe) -> tuple[DistillationConfig, list[str]]:
    """The distillation with qualified names and every setting, and the names of its terms."""
    try:
        distillation = recipe.distillation.resolved()
        return distillation, [term.name for term in Objective(distillation).terms]
    except KdplugError as error:
        raise error.at("distillation") from error.__cause__


def _emptied(output_dir: Path) -> Path:
    """The folder, without what an earlier run left under the names that this one writes."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (output_dir / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write into {str(output_dir)!r}: {error.strerror}", field="output_dir") from error
    return output_dir
