"""``kdplug run``: run a recipe and write its results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from rich.text import Text
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.error_path import prefixed, qualify_errors
from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Part, SavesTeacher, StartsStudent, Task
from kdplug.engine.checkpoint.archive import SUMS
from kdplug.engine.checkpoint.fingerprint import dataset_fingerprint
from kdplug.engine.checkpoint.identity import model_identity
from kdplug.engine.checkpoint.in_use import in_use
from kdplug.engine.checkpoint.weights import STUDENT
from kdplug.engine.observe.activity import busy
from kdplug.errors import ConfigError, RunError
from kdplug.host.entry import LOCAL
from kdplug.host.lock import check_locked
from kdplug.host.manifest import header_line
from kdplug.host.name import printable, split_qualified
from kdplug.recipes.arm import PREDICTIONS, Arm
from kdplug.recipes.arms_run import ArmsRun
from kdplug.recipes.cache_provenance import CacheProvenance, fingerprint, read_provenance
from kdplug.recipes.comparison import compare, write_predictions
from kdplug.recipes.data import sized
from kdplug.recipes.evaluators import Evaluations
from kdplug.recipes.measure import unit_of
from kdplug.recipes.other_teacher import needs_no_server
from kdplug.recipes.output_folder import begun_record, check_own, check_unused, empty, identity_of
from kdplug.recipes.preflight import check_recipe, rehearse
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.result import ArmFigures, RecipeResult, RunFigures
from kdplug.recipes.saved_student import save_student, save_teacher
from kdplug.recipes.stages.record import resolved_stages, stages_record, unranked_student
from kdplug.recipes.stages.result import check_unchanged
from kdplug.recipes.stages.shared_cache import check_cache
from kdplug.recipes.stages.train import planned_runs
from kdplug.recipes.task import review
from kdplug.report.curve import CURVES, draw_run_curves
from kdplug.report.file import write_json
from kdplug.report.page.results import METRICS
from kdplug.report.page.write import REPORT, write_report
from kdplug.report.record import RECORD, run_record
from kdplug.report.table import comparison, evaluator_table, temperature_line, terms_table


def fingerprints(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Return fingerprints of each data part, the teacher and the untrained student, as plain data for the record.

    The teacher is not built. A student initialized from the teacher is omitted, because the teacher determines it.
    """
    with prefixed("task"):
        found = {
            "data": {part: dataset_fingerprint(sized(task, part)) for part in used_parts(recipe, task)},
            "teacher": dict(fingerprint(recipe, task)),
        }
        if not (isinstance(task, StartsStudent) and task.starts_student):
            set_seed(recipe.seed)
            found["student"] = dict(model_identity(task.build_student()))
    return found


def used_parts(recipe: Recipe, task: Task) -> list[Part]:
    """Return the parts of the data that a run of the recipe reads."""
    parts: list[Part] = ["distillation", "baseline", "test"]
    if recipe.training.evaluations:
        parts.insert(2, "validation")
    return ["teacher", *parts] if recipe.has_task_teacher and task.teacher_fit() is not None else parts


class ControlError(RunError):
    """A control failed, and the other results are written."""


class EvaluatorError(RunError):
    """An evaluator failed, and all other results are written."""


@qualify_errors
def run_recipe(
    recipe: Recipe,
    *,
    jobs: int = 1,
    console: Console | None = None,
    locked: Path | None = None,
    resume: bool = False,
    resume_changed: bool = False,
    overwrite: bool = False,
) -> RecipeResult:
    """Train the teacher if necessary; for each seed train the controls and distil the student; and compare them.

    Writes ``kdplug-run.json``, ``metrics.json``, ``predictions.jsonl``, ``student.safetensors``, its ``SHA256SUMS``,
    ``curves.png`` and ``report.html`` to the recipe's ``output_dir``. Checkpoints, log and result of each training run go to a folder there:
    ``teacher``, and ``seed-N/no_teacher`` and ``seed-N/distilled`` for each seed N. The saved student is the distilled
    one of the seed with the best validation metric. A task that saves students itself writes a folder ``model`` instead
    of ``student.safetensors``. A task that saves teachers writes one that it trained to ``teacher``. ``console`` receives
    messages and tables; by default nothing is printed. A file of one of these names that was not written by a run raises
    an error. ``jobs`` is the number of students that are trained at the same time, each in a separate process.
    ``locked`` is the ``kdplug-run.json`` of an earlier run that this one must reproduce.

    ``resume`` continues an interrupted run in ``output_dir`` and, on a CPU, gives the same results as an uninterrupted
    run; if there is none, it starts one. A resumed recipe may have more seeds, which the results then mention.
    ``resume_changed`` resumes even if the recipe or a version changed. ``overwrite`` deletes the results and checkpoints
    of an earlier run in ``output_dir``; without ``overwrite`` or ``resume`` they raise an error.

    Raises: ``KdplugError`` if the recipe names an unusable entry or file, or the run cannot start or resume; ``RunError``
    at the end, when all results are written, if a control or an evaluator failed.
    """
    console = console or Console(quiet=True)

    def say(text: str) -> None:
        console.print(Text(printable(text)), soft_wrap=True)

    resumes = resume or resume_changed
    if resumes and overwrite:
        raise ConfigError(
            "cannot be combined with resume: a resumed run keeps the earlier results. Remove overwrite or resume",
            field="overwrite",
        )
    if jobs < 1:
        raise ConfigError(f"must be at least 1, got {jobs}", field="jobs")
    _check_alone()
    with busy("Running the recipe", shown=not console.quiet):
        component, task, (distillation, terms, _) = check_recipe(recipe)
        output_dir = Path(recipe.output_dir)
        check_own(output_dir)
        if not overwrite:
            check_unused(recipe, resumes=resumes)
        record = run_record(recipe, component.qualified_spec(), distillation)
        if recipe.stages:
            of_stages = stages_record(recipe)
            record |= {"stages": of_stages["stages"], "entries": [*record["entries"], *of_stages["entries"]]}
        if locked is not None:
            check_locked(locked, record)
        runner = RecipeRunner(recipe, task, say, show_progress=not console.quiet)
        check_cache(runner)
        with busy("Hashing the data"):
            record |= fingerprints(recipe, task)
        _check_jobs(record, jobs)
        before = begun_record(output_dir, record, changed_is_meant=resume_changed) if resumes else None
        if before is not None and not resume_changed:
            check_unchanged(recipe)
        record |= _seeds(recipe, before)
        runner = replace(runner, resume=before is not None, resume_changed=resume_changed)
        with in_use(output_dir):
            result = _run(recipe, runner, record, (distillation, terms), console, before=before, jobs=jobs)
    _raise_failures(result)
    return result


def _raise_failures(result: RecipeResult) -> None:
    """Raise ``ControlError`` or ``EvaluatorError`` for the failures of a run whose other results are written."""
    rest = f"The other results are in {result.output_dir}. Fix the cause, then run again with --resume:"
    controls, evaluators = (
        "".join(f"\n    {what}: {error}" for what, error in failed.items())
        for failed in (result.failed, result.evaluators_failed)
    )
    if controls:
        raise ControlError(f"a control failed, so the comparison lacks it. {rest}{controls}{evaluators}")
    if evaluators:
        raise EvaluatorError(f"an evaluator failed, so its figures are missing. {rest}{evaluators}")


def _seeds(recipe: Recipe, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the seeds for the record, and those that were added to those of the record ``before``.

    Raises: ``ConfigError`` if the recipe lacks a seed of that record.
    """
    seeds = list(recipe.student_seeds)
    if before is None:
        return {"seeds": seeds, "seeds_added": []}
    earlier = before.get("seeds", [before.get("seed")])
    if missing := [seed for seed in earlier if seed not in seeds]:
        raise ConfigError(
            f"must include {', '.join(map(str, missing))}, as in the run in {recipe.output_dir!r}. A resumed run keeps all of "
            "its seeds, because choosing among them after seeing results makes the verdict invalid. Add them, or start "
            "again in another output_dir",
            field="seeds",
        )
    return {"seeds": seeds, "seeds_added": [*before.get("seeds_added", []), *(s for s in seeds if s not in earlier)]}


def _run(
    recipe: Recipe,
    runner: RecipeRunner,
    record: dict[str, Any],
    shown: tuple[DistillationConfig, Any],
    console: Console,
    *,
    before: Mapping[str, Any] | None,
    jobs: int,
) -> RecipeResult:
    """Train, measure and save in the recipe's locked folder."""
    task, say, output_dir = runner.task, runner.say, Path(recipe.output_dir)
    origin = read_provenance(recipe)
    runner.check_places(planned_runs(runner))
    if before is not None:
        shares: bool = before.get("shares_teacher_cache", False)
    else:
        sample = None if origin is not None or needs_no_server(recipe) else rehearse(runner)
        shares = sample is not None and ArmsRun.may_share_cache(recipe, task, sample, say)
    record["shares_teacher_cache"] = shares
    saves_teacher = origin is None and isinstance(task, SavesTeacher) and runner.fit() is not None
    empty(recipe, resuming=before is not None, saves_teacher=saves_teacher)
    write_json(output_dir / RECORD, record)
    temperature = "" if recipe.stages else temperature_line(shown[0])
    for line in (header_line(), "", task.about(), "", temperature):
        say(line)
    _print_terms(recipe, shown, console, is_new=before is None)
    with busy("Reviewing the data"):
        for field, message in () if before is not None else review(recipe, task):
            say(f"Warning: {field}: {message}")

    teacher = _teacher(runner, origin, record)
    with busy("Hashing the teacher"):
        of_teacher = None if teacher is None else model_identity(teacher)
    about = [identity_of(record), of_teacher, *([record["recipe"]["stages"]] if recipe.stages else [])]
    identity = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    arms = ArmsRun(runner, identity, teacher, origin, shares_cache=shares, jobs=jobs)
    arms.run()
    evaluations = Evaluations(arms)
    evaluations.run()
    saved = arms.best()
    student = arms.load(saved)
    result = _result(arms, saved, student, origin, record)
    result = replace(result, evaluators_failed=evaluations.failed)

    folder = Path(output_dir if origin is None else recipe.training.teacher_cache or "") / Arm.TEACHER
    listed = {"saved_teacher": str(folder)} if (folder / SUMS).is_file() else {}
    with busy("Saving the student"):
        written = save_student(task, student, output_dir, {**record, **listed, "results": result.to_data()})
    write_predictions(recipe, output_dir / PREDICTIONS, list(arms.done))
    write_json(output_dir / METRICS, result.to_data())
    with busy("Drawing the curves and the report"):
        draw_run_curves(output_dir)
        write_report(output_dir)
    _print(result, arms, console)
    student_files = (written, SUMS) if written == STUDENT else (written,)  # a folder holds its own checksums
    teacher_files = (folder.name,) if listed and origin is None else ()
    files = (RECORD, METRICS, PREDICTIONS, *student_files, *teacher_files, CURVES, REPORT)
    say(f"Written to {output_dir}: {', '.join(files)}")
    return result


def _print_terms(recipe: Recipe, shown: tuple[DistillationConfig, Any], console: Console, *, is_new: bool) -> None:
    """Print the terms of the distillation, or of each stage."""
    if not recipe.stages:
        console.print(terms_table(*shown))
    for stage in resolved_stages(recipe):
        console.print(Text(printable(stage.title)), soft_wrap=True)
        console.print(stage.table)
        warning = unranked_student(stage.stage, stage.resolved.reads) if is_new else None
        if warning is not None:
            field = f"stages.{stage.stage.place}.training.best_checkpoint"
            console.print(Text(printable(f"Warning: {field}: {warning}")), soft_wrap=True)


def _result(
    arms: ArmsRun, saved: RunFigures, student: nn.Module, origin: CacheProvenance | None, record: Mapping[str, Any]
) -> RecipeResult:
    """Return the result of the complete runs; ``student`` is that of the run ``saved``."""
    runner, recipe = arms.runner, arms.runner.recipe
    metric, task = runner.metric, runner.task
    compared = compare(recipe, metric, arms.done, arms.teacher)
    models = [student, *filter(None, [arms.model])]
    of_student, *rest = runner.measured(*models)
    of_teacher = rest[0] if rest else of_student if origin is None else origin.figures
    found = {
        arm: ArmFigures(runs, of_teacher if arm is Arm.TEACHER else of_student, compared.details.get(arm, {}))
        for arm in Arm
        if (runs := [figures for run, figures in arms.done.items() if run.arm is arm])
    }
    if arms.teacher is not None:
        found.setdefault(Arm.TEACHER, ArmFigures([arms.teacher], of_teacher))
    return RecipeResult(
        metric=metric.name,
        is_lower_better=metric.is_lower_better,
        unit=unit_of(task),
        steps=max(run.steps for run in found[Arm.DISTILLED].runs),
        seeds=recipe.student_seeds,
        controls=recipe.controls,
        saved_seed=saved.seed,
        parts={part: len(task.data(part)) for part in used_parts(recipe, task)},  # type: ignore[arg-type]
        arms={arm: found[arm] for arm in Arm if arm in found},
        output_dir=Path(recipe.output_dir),
        compared=compared,
        failed=arms.failed,
        seeds_added=bool(record["seeds_added"]),
    )


def _print(result: RecipeResult, arms: ArmsRun, console: Console) -> None:
    """Print the table of the arms and the verdict."""
    recipe, say = arms.runner.recipe, arms.runner.say
    console.print(comparison(result.title, result.unit, result.lines()))
    if evaluated := result.evaluator_rows():
        console.print(evaluator_table([arm.label for arm in result.arms], evaluated))
    for line in result.compared.lines(has_control=Arm.NO_TEACHER in recipe.controls, seeds_added=result.seeds_added):
        say(line)
    batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    if recipe.controls:
        say(f"For each seed, the students started from the same initial weights and used batches of {batch} examples.")
    if recipe.controls and recipe.stages:
        say("The student without distillation took as many optimizer steps as all stages together.")
    if result.made is not None:
        say(f"During distillation the task generated {result.made} with the student.")
    if len(result.seeds) > 1:
        chosen = "the best on the validation part" if recipe.training.evaluations else "the first"
        say(f"The saved student is that of seed {result.saved_seed}, {chosen}.")


def _teacher(runner: RecipeRunner, origin: CacheProvenance | None, record: Mapping[str, Any]) -> nn.Module | None:
    """Return the trained teacher, saved if the recipe trains it, or ``None`` if its outputs and metrics are cached."""
    if origin is None:
        teacher = runner.teacher()
        if teacher is not None and runner.fit() is not None:
            with busy("Saving the teacher"):
                save_teacher(runner.task, teacher, Path(runner.recipe.output_dir) / Arm.TEACHER, record)
        return teacher
    cached = f"Using cached teacher outputs from {runner.recipe.training.teacher_cache}"
    if origin.is_measured_on(record["data"]["test"], runner.metric.name):
        runner.say(f"{cached}. The teacher metrics are those stored with the cache.")
        return None
    runner.say(
        f"{cached}. The cache's teacher metrics are from a different test part, so the teacher is evaluated again."
    )
    return runner.cached_teacher()


def _check_jobs(record: Mapping[str, Any], jobs: int) -> None:
    """Raise ``ConfigError`` if worker processes would not find an entry, because it is registered in this process only."""
    own = [entry["name"] for entry in record["entries"] if split_qualified(entry["name"])[0] == LOCAL]
    if jobs > 1 and own:
        raise ConfigError(
            f"is {jobs}, but {own[0]} is registered in this process only, and a worker process would not find it. Set jobs to "
            "1, or install the entry as a plugin",
            field="jobs",
        )


def _check_alone() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise RunError(
            f"a recipe runs in one process, but {processes} were launched. To use several, call "
            "kdplug.GeneralDistiller in your own script and start it with accelerate launch"
        )
