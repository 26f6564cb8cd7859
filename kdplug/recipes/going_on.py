"""Whether a recipe may go on with what lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Part, Task
from kdplug.contracts.task_option import StartsStudent
from kdplug.engine.data_fingerprint import dataset_fingerprint
from kdplug.engine.identity import check_identity, model_identity
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json
from kdplug.host.name import split_qualified
from kdplug.objective.field import below
from kdplug.recipes.origin import fingerprint
from kdplug.report.record import RECORD

_BESIDE_THE_POINT = (
    "log_dir",
    "trackers",
    "shard_teacher",
    "teacher_cache",
    "logging_steps",
    "keep_last",
    "device",
    "ckpt_frequency",
    "ckpt_epoch_frequency",
    "ckpt_steps",
    "eval_batch_size",
)
"""Keys of a recipe's ``training`` that change nothing in what is learned."""


def fingerprints(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Fingerprints of the data, part by part, of the teacher, and of the student before any training; plain data for the record.

    The teacher is not built for that. A student that starts from the teacher follows from it and is left out.
    """
    parts: tuple[Part, ...] = ("distillation", "baseline", "test")
    with below("task"):
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
    """Whether ``output_dir`` holds a run of the recipe that ``record`` is of: its own ``kdplug-run.json`` says so.

    Raises: ``RunError`` that lists what differs between the two, unless ``changed_is_meant``; for a damaged file.
    """
    file = output_dir / RECORD
    if not file.is_file():
        return False
    try:
        saved = read_json(file)
        before = _identity(saved)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error}. Without --resume the recipe starts afresh") from error
    if not changed_is_meant:
        check_identity(before, _identity(record), file)
    return True


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, its data, teacher and student, and the versions of kdplug, torch and each plugin that it names."""
    named = {split_qualified(entry["name"])[0] for entry in record["entries"]}
    training = {key: value for key, value in record["recipe"]["training"].items() if key not in _BESIDE_THE_POINT}
    return {
        "kdplug": record["kdplug"],
        "torch": record["torch"],
        "plugins": {one["dist"]: one["version"] for one in record["plugins"] if one["dist"] in named},
        "recipe": {**record["recipe"], "training": training},
        **{part: record[part] for part in ("data", "teacher", "student") if part in record},
    }
