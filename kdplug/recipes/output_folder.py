"""Check and clear the ``output_dir`` of a recipe, so that a run replaces no file that was not written by a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdplug.config.key import not_identity
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.checkpoint.archive import SUMS
from kdplug.engine.checkpoint.identity import check_identity
from kdplug.engine.checkpoint.weights import STUDENT
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json
from kdplug.host.name import split_qualified
from kdplug.recipes.arm import HISTORY, PREDICTIONS, RESULT, STAGE_RESULT, Arm, arm_folders, checkpoints, stage_folders
from kdplug.recipes.saved_student import MODEL, forget_student, forget_teacher, forget_temporary
from kdplug.recipes.training import forget_checkpoints
from kdplug.report.curve import CURVES
from kdplug.report.file import write_json
from kdplug.report.page.results import METRICS
from kdplug.report.page.write import REPORT
from kdplug.report.record import EVALUATORS, RECORD

FILES = (RECORD, METRICS, PREDICTIONS, STUDENT, SUMS, CURVES, REPORT)
"""Files that a run writes, in addition to the folders of its arms; a folder ``model`` may replace the weights.

A trained teacher is in the folder of its arm, if the task can save it.
"""

CACHE = "teacher-cache"
"""The folder of the teacher outputs that the students of several seeds share."""


def begun_record(
    output_dir: Path, record: Mapping[str, Any], *, changed_is_meant: bool = False
) -> Mapping[str, Any] | None:
    """Return the record of the run in ``output_dir``, if there is one, and check that it matches ``record``.

    Raises: ``RunError`` that lists the differences, unless ``changed_is_meant``; ``RunError`` for a damaged file.
    """
    file = output_dir / RECORD
    if not file.is_file():
        return None
    try:
        saved = read_json(file)
        before = identity_of(saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged: {error}. Start over with --overwrite instead of --resume") from error
    if not changed_is_meant:
        check_identity(before, identity_of(record), file)
    return saved  # type: ignore[no-any-return]


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe, its data, teacher and student, and the versions of kdplug, torch and each plugin in use.

    Stages are omitted: those that have not begun may still be changed, and ``check_unchanged`` compares the others.
    """
    used = [entry for entry in record["entries"] if not entry["path"].startswith(f"{EVALUATORS}.")]
    named = {split_qualified(entry["name"])[0] for entry in used} | _acting(record["recipe"])
    free, of_recipe = not_identity(RecipeTraining), (*not_identity(Recipe), "stages")
    training = {key: value for key, value in record["recipe"]["training"].items() if key not in free}
    recipe = {key: value for key, value in record["recipe"].items() if key not in of_recipe}
    return {
        "kdplug": record["kdplug"],
        "torch": record["torch"],
        "plugins": {one["dist"]: one["version"] for one in record["plugins"] if one["dist"] in named},
        "recipe": {**recipe, "training": training},
        **{part: record[part] for part in ("data", "teacher", "student") if part in record},
    }


def _acting(recipe: Mapping[str, Any]) -> set[str]:
    return {name for part in (recipe, recipe["distillation"]) for name in part.get("plugins", {}).get("hooks", ())}


LIST = ".kdplug-files"
"""The list of the files that runs wrote to ``output_dir``, without the folders of their arms."""


def _own_files(output_dir: Path) -> tuple[str, ...]:
    """Return the names of the files that runs wrote; all names if the record is from a version that wrote no list."""
    try:
        listed = read_json(output_dir / LIST)
    except (OSError, ValueError):
        listed = None
    if isinstance(listed, list):
        return tuple(name for name in FILES if name in listed)
    return FILES if (output_dir / RECORD).is_file() else ()


def check_own(output_dir: Path) -> None:
    """Raise ``RunError`` for a file that no run wrote and that this run would replace."""
    own = _own_files(output_dir)
    names = [name for name in FILES if name not in own]
    for folder in () if own else (output_dir / Arm.TEACHER.value, *arm_folders(output_dir)):
        names += [str((folder / name).relative_to(output_dir)) for name in (RESULT, PREDICTIONS, HISTORY)]
    for folder in () if own else stage_folders(output_dir):
        names += [str((folder / name).relative_to(output_dir)) for name in (STAGE_RESULT, HISTORY)]
    for name in names:
        if os.path.lexists(output_dir / name):
            raise RunError(
                f"{str(output_dir)!r} contains {name!r}, which was not written by a run, and this run would replace it. "
                "Choose another output_dir, or move the file",
                field="output_dir",
            )


def check_unused(recipe: Recipe, *, resumes: bool) -> None:
    """Raise ``RunError`` if ``output_dir`` contains results or checkpoints of an earlier run that cannot be resumed."""
    output_dir = Path(recipe.output_dir)
    if resumes and (output_dir / RECORD).is_file():
        return
    names = (*FILES, *(f"{folder}/{RECORD}" for folder in (MODEL, Arm.TEACHER.value)))
    files = [file for name in names if (file := output_dir / name).is_file()]
    found = [*files, *checkpoints(output_dir)]
    if found:
        missing = f" but no {RECORD} to resume from" if resumes else ""
        way = "" if resumes or found[0].name != RECORD else "resume that run with --resume, "
        raise RunError(
            f"{recipe.output_dir!r} contains {str(found[0].relative_to(output_dir))!r} of an earlier run{missing}. Either "
            f"{way}choose another folder with --output-dir, or replace the earlier results with --overwrite",
            field="output_dir",
        )


def empty(recipe: Recipe, *, resuming: bool, saves_teacher: bool) -> None:
    """Remove the files of an earlier run that this one writes; delete its checkpoints unless ``resuming``.

    A resumed run that ``saves_teacher`` keeps the saved teacher until it writes another, because both are usually equal.
    The record is deleted first: without it nothing in the folder can be resumed. Temporary files of a killed run are
    removed too.
    """
    output_dir, teacher = Path(recipe.output_dir), Path(recipe.output_dir) / Arm.TEACHER.value
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
            _forget_cache(recipe)
    except OSError as error:
        raise RunError(f"cannot write to {str(output_dir)!r}: {error.strerror}", field="output_dir") from error


def _forget_cache(recipe: Recipe) -> None:
    """Delete the teacher outputs that an earlier run stored for its seeds. A cache that the recipe names is kept."""
    folder, named = Path(recipe.output_dir) / CACHE, recipe.training.teacher_cache
    is_named = named is not None and Path(named).resolve() == folder.resolve()
    if not is_named and not folder.is_symlink() and CacheFolder(folder).manifest() is not None:
        shutil.rmtree(folder)
