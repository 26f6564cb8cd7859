"""What a recipe and the cache that was made for it say of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Task
from kdplug.contracts.task_fingerprint import FingerprintedTask
from kdplug.engine.cache_folder import ORIGIN
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json
from kdplug.host.manifest import environment_record
from kdplug.host.registry import tasks
from kdplug.recipes.result import Figures
from kdplug.report.file import write_json


@dataclass(frozen=True, slots=True)
class Origin:
    """``teacher`` are the figures of the teacher when the cache was made, ``metric`` the task's."""

    metric: str
    teacher: Figures

    def write(self, folder: Path) -> None:
        """Say of a complete cache where it is from."""
        write_json(folder / ORIGIN, {**environment_record(), "metric": self.metric, "teacher": asdict(self.teacher)})


def read_origin(recipe: Recipe) -> Origin | None:
    """Of the cache that the recipe is to train from; ``None`` where ``kdplug cache`` made none.

    Raises: ``RunError`` for a damaged one.
    """
    if recipe.training.teacher_cache is None or not recipe.distillation.is_caching_logits:
        return None
    file = Path(recipe.training.teacher_cache) / ORIGIN
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        return Origin(found["metric"], Figures(**found["teacher"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        again = f"kdplug cache RECIPE --out {file.parent} writes it again"
        raise RunError(f"{file} is damaged: {error}. {again}", field="teacher_cache") from error


def fingerprint(recipe: Recipe, task: Task) -> Mapping[str, Any]:
    """What of a recipe its teacher's outputs depend on, beside what can be told from the teacher and the data themselves.

    What the task says of itself, or else all of its settings; for a teacher that the recipe fits, how and from which seed.
    """
    if isinstance(task, FingerprintedTask):
        found = dict(task.fingerprint())
    else:
        found = {"task": tasks.build(recipe.task).qualified_spec()}
    fit = task.teacher_fit()
    return found if fit is None else {**found, "fit": {**fit, "seed": recipe.seed}}
