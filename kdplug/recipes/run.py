"""``kdplug run``: run a recipe and write its results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console
from rich.text import Text
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.error_path import prefixed, qualify_errors
from kdplug.config.key import not_identity
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.contracts.task import Directed, Part, SavesTeacher, StartsStudent, Task
from kdplug.engine.checkpoint.archive import SUMS
from kdplug.engine.checkpoint.fingerprint import dataset_fingerprint
from kdplug.engine.checkpoint.folder import steps
from kdplug.engine.checkpoint.identity import check_identity, model_identity
from kdplug.engine.checkpoint.in_use import in_use
from kdplug.engine.checkpoint.weights import STUDENT
from kdplug.engine.observe.activity import busy
from kdplug.errors import ConfigError, RunError
from kdplug.host.bounded_json import read_json
from kdplug.host.lock import check_locked
from kdplug.host.manifest import header_line
from kdplug.host.name import printable, split_qualified
from kdplug.recipes.cache_provenance import CacheProvenance, fingerprint, read_provenance
from kdplug.recipes.preflight import check_recipe, rehearse
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.result import CURVES, METRICS, RecipeResult, unit_of
from kdplug.recipes.saved_student import (
    MODEL,
    forget_student,
    forget_teacher,
    forget_temporary,
    save_student,
    save_teacher,
)
from kdplug.recipes.task import review_data
from kdplug.recipes.training import Stage, forget_checkpoints
from kdplug.report.curve import draw_curves
from kdplug.report.file import write_json
from kdplug.report.record import RECORD, run_record
from kdplug.report.table import comparison, temperature_line, terms_table


def fingerprints(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Return fingerprints of each data part, the teacher and the untrained student, as plain data for the record.

    The teacher is not built. A student initialized from the teacher is omitted, because the teacher determines it.
    """
    parts: tuple[Part, ...] = ("distillation", "baseline", "test")
    with prefixed("task"):
        if task.teacher_fit() is not None:
            parts = ("teacher", *parts)
        found = {
            "data": {part: dataset_fingerprint(task.data(part)) for part in parts},
            "teacher": dict(fingerprint(recipe, task)),
        }
        if not (isinstance(task, StartsStudent) and task.starts_student):
            set_seed(recipe.seed)
            found["student"] = dict(model_identity(task.build_student()))
    return found


def is_begun(output_dir: Path, record: Mapping[str, Any], *, changed_is_meant: bool = False) -> bool:
    """Return whether ``output_dir`` holds a run, and check that its ``kdplug-run.json`` matches ``record``.

    Raises: ``RunError`` that lists the differences, unless ``changed_is_meant``; ``RunError`` for a damaged file.
    """
    file = output_dir / RECORD
    if not file.is_file():
        return False
    try:
        saved = read_json(file)
        before = _identity(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged: {error}. Start over with --overwrite instead of --resume") from error
    if not changed_is_meant:
        check_identity(before, _identity(record), file)
    return True


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe, its data, teacher and student, and the versions of kdplug, torch and each plugin in use."""
    named = {split_qualified(entry["name"])[0] for entry in record["entries"]}
    free = not_identity(RecipeTraining)
    training = {key: value for key, value in record["recipe"]["training"].items() if key not in free}
    return {
        "kdplug": record["kdplug"],
        "torch": record["torch"],
        "plugins": {one["dist"]: one["version"] for one in record["plugins"] if one["dist"] in named},
        "recipe": {**record["recipe"], "training": training},
        **{part: record[part] for part in ("data", "teacher", "student") if part in record},
    }


FILES = (RECORD, METRICS, STUDENT, SUMS, CURVES)
"""Files that a run writes, in addition to the folders of its stages; a folder ``model`` may replace the weights.

A trained teacher is in the folder of its stage, if the task can save it.
"""


@qualify_errors
def run_recipe(
    recipe: Recipe,
    *,
    console: Console | None = None,
    locked: Path | None = None,
    resume: bool = False,
    resume_changed: bool = False,
    overwrite: bool = False,
) -> RecipeResult:
    """Train the teacher if necessary, distil it into a student, train the same student without it, and compare all three.

    Writes ``kdplug-run.json``, ``metrics.json``, ``student.safetensors``, its ``SHA256SUMS`` and ``curves.png`` to the
    recipe's ``output_dir``. Checkpoints and logs of the three training runs go to the
    folders ``teacher``, ``student`` and ``baseline`` there. A task that saves students itself writes a folder ``model``
    instead of ``student.safetensors``. A task that saves teachers writes one that it trained to ``teacher``. ``console``
    receives messages and tables; by default nothing is printed. A file of one of these names that was not written by a run
    raises an error.
    ``locked`` is the ``kdplug-run.json`` of an earlier run that this one must reproduce.

    ``resume`` continues an interrupted run in ``output_dir`` and, on a CPU, gives the same results as an uninterrupted
    run; if there is none, it starts one. ``resume_changed`` resumes even if the recipe or a version changed. ``overwrite``
    deletes the results and checkpoints of an earlier run in ``output_dir``; without ``overwrite`` or ``resume`` they
    raise an error.

    Raises: ``KdplugError`` if the recipe names an unusable entry or file, or the run cannot start or resume.
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
    _check_alone()
    with busy("Running the recipe", shown=not console.quiet):
        component, task, (distillation, terms, _) = check_recipe(recipe)
        _check_own(Path(recipe.output_dir))
        if not overwrite:
            _check_unused(recipe, resumes=resumes)
        record = run_record(recipe, component.qualified_spec(), distillation)
        if locked is not None:
            check_locked(locked, record)
        runner = RecipeRunner(recipe, task, say, show_progress=not console.quiet)
        runner.check_cache()
        with busy("Hashing the data"):
            record |= fingerprints(recipe, task)
        output_dir = Path(recipe.output_dir)
        resuming = resumes and is_begun(output_dir, record, changed_is_meant=resume_changed)
        runner = replace(runner, resume=resuming, resume_changed=resume_changed)
        with in_use(output_dir):
            return _run(recipe, runner, record, (distillation, terms), console, resuming=resuming)


def _run(
    recipe: Recipe,
    runner: RecipeRunner,
    record: Mapping[str, Any],
    shown: tuple[DistillationConfig, Any],
    console: Console,
    *,
    resuming: bool,
) -> RecipeResult:
    """Train, measure and save in the recipe's locked folder."""
    task, say, output_dir = runner.task, runner.say, Path(recipe.output_dir)
    distillation, terms = shown
    origin = read_provenance(recipe)
    runner.check_places()
    if origin is None and not resuming:
        rehearse(runner)
    saves_teacher = origin is None and isinstance(task, SavesTeacher) and runner.fit() is not None
    _empty(recipe, resuming=resuming, saves_teacher=saves_teacher)
    write_json(output_dir / RECORD, record)
    for line in (header_line(), "", task.about(), "", temperature_line(distillation)):
        say(line)
    console.print(terms_table(distillation, terms))
    with busy("Reviewing the data"):
        for field, message in () if resuming else review_data(task):
            say(f"Warning: {field}: {message}")

    teacher = _teacher(runner, origin, record)
    student, history = runner.distilled(teacher)
    baseline, steps = runner.baseline(teacher)
    of_student, of_baseline, *rest = runner.measured(*filter(None, (student, baseline, teacher)))
    of_teacher = rest[0] if origin is None or rest else origin.teacher
    result = RecipeResult(
        task.metric,
        of_teacher,
        of_student,
        of_baseline,
        steps,
        output_dir,
        is_lower_better=isinstance(task, Directed) and task.is_lower_better,
        unit=unit_of(task),
        made=history.made if history.made.batches else None,
    )

    folder = Path(output_dir if origin is None else recipe.training.teacher_cache or "") / Stage.TEACHER
    saved = {"saved_teacher": str(folder)} if (folder / SUMS).is_file() else {}
    with busy("Saving the student"):
        written = save_student(task, student, output_dir, {**record, **saved, "results": result.to_data()})
    write_json(output_dir / METRICS, result.to_data())
    with busy("Drawing the curves"):
        draw_curves(output_dir / CURVES, history.terms, result.title, history.student, result.levels())
    console.print(comparison(result.title, result.unit, result.lines()))
    batch = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    say(f"Both students started from the same initial weights and took {steps} optimizer steps on batches of {batch}.")
    if result.made is not None:
        say(f"During distillation the task generated {result.made} with the student.")
    student_files = (written, SUMS) if written == STUDENT else (written,)  # a folder holds its own checksums
    teacher_files = (folder.name,) if saved and origin is None else ()
    say(f"Written to {output_dir}: {', '.join((RECORD, METRICS, *student_files, *teacher_files, CURVES))}")
    return result


def _teacher(runner: RecipeRunner, origin: CacheProvenance | None, record: Mapping[str, Any]) -> nn.Module | None:
    """Return the trained teacher, saved if the recipe trains it, or ``None`` if its outputs and metrics are cached."""
    if origin is None:
        teacher = runner.teacher()
        if runner.fit() is not None:
            with busy("Saving the teacher"):
                save_teacher(runner.task, teacher, Stage.TEACHER.folder(runner.recipe), record)
        return teacher
    cached = f"Using cached teacher outputs from {runner.recipe.training.teacher_cache}"
    if origin.is_measured_on(record["data"]["test"], runner.task.metric):
        runner.say(f"{cached}. The teacher metrics are those stored with the cache.")
        return None
    runner.say(
        f"{cached}. The cache's teacher metrics are from a different test part, so the teacher is evaluated again."
    )
    return runner.cached_teacher()


def _check_alone() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise RunError(
            f"a recipe runs in one process, but {processes} were launched. To use several, call "
            "kdplug.GeneralDistiller in your own script and start it with accelerate launch"
        )


LIST = ".kdplug-files"
"""The list of the files that runs wrote to ``output_dir``, without the folders of their stages."""


def _own_files(output_dir: Path) -> tuple[str, ...]:
    """Return the names of the files that runs wrote; all of them if the record is from a run that kept no list."""
    try:
        listed = read_json(output_dir / LIST)
    except (OSError, ValueError):
        listed = None
    if isinstance(listed, list):
        return tuple(name for name in FILES if name in listed)
    return FILES if (output_dir / RECORD).is_file() else ()


def _check_own(output_dir: Path) -> None:
    """Raise ``RunError`` for a file that no run wrote and that this run would replace."""
    own = _own_files(output_dir)
    for name in FILES:
        if name not in own and os.path.lexists(output_dir / name):
            raise RunError(
                f"{str(output_dir)!r} holds {name!r}, which was not written by a run, and this run would replace it. "
                "Choose another output_dir, or move the file",
                field="output_dir",
            )


def _check_unused(recipe: Recipe, *, resumes: bool) -> None:
    """Raise ``RunError`` if ``output_dir`` holds results or checkpoints of an earlier run, unless they can be resumed."""
    output_dir = Path(recipe.output_dir)
    if resumes and (output_dir / RECORD).is_file():
        return
    names = (*FILES, *(f"{folder}/{RECORD}" for folder in (MODEL, Stage.TEACHER)))
    files = [file for name in names if (file := output_dir / name).is_file()]
    found = [*files, *(folder for stage in Stage for _, folder in steps(stage.folder(recipe)))]
    if found:
        missing = f" but no {RECORD} to resume from" if resumes else ""
        way = "" if resumes or found[0].name != RECORD else "resume that run with --resume, "
        raise RunError(
            f"{recipe.output_dir!r} holds {str(found[0].relative_to(output_dir))!r} of an earlier run{missing}. Either "
            f"{way}choose another folder with --output-dir, or replace the earlier results with --overwrite",
            field="output_dir",
        )


def _empty(recipe: Recipe, *, resuming: bool, saves_teacher: bool) -> None:
    """Remove the files of an earlier run that this one writes; delete its checkpoints unless ``resuming``.

    A resumed run that ``saves_teacher`` keeps the saved one until then, because it is usually the same.
    The record is deleted first: without it nothing in the folder can be resumed. Temporary files of a killed run are
    removed too.
    """
    output_dir, teacher = Path(recipe.output_dir), Stage.TEACHER.folder(recipe)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if _own_files(output_dir):
            forget_temporary(output_dir, FILES, teacher)
        write_json(output_dir / LIST, FILES)
        for name in FILES[1:] if resuming else FILES:
            (output_dir / name).unlink(missing_ok=True)
        forget_student(output_dir)
        if not (resuming and saves_teacher):
            forget_teacher(teacher)
        if not resuming:
            forget_checkpoints(recipe)
    except OSError as error:
        raise RunError(f"cannot write to {str(output_dir)!r}: {error.strerror}", field="output_dir") from error
