"""What a recipe and the cache that was made for it say of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import FingerprintedTask, Task
from kdplug.engine.cache.folder import ORIGIN, CacheFolder
from kdplug.errors import RunError
from kdplug.host.manifest import environment_record
from kdplug.host.registry import tasks
from kdplug.recipes.result import Figures


@dataclass(frozen=True, slots=True)
class CacheProvenance:
    """``teacher`` are the figures of the teacher when the cache was made, ``metric`` the task's."""

    metric: str
    teacher: Figures

    def write(self, folder: Path) -> None:
        """Record in a complete cache which teacher it is of.

        Raises: ``RunError`` where the folder cannot be written.
        """
        data = {**environment_record(), "metric": self.metric, "teacher": asdict(self.teacher)}
        CacheFolder(folder).write_origin(data)


def read_provenance(recipe: Recipe) -> CacheProvenance | None:
    """Of the cache that the recipe is to train from; ``None`` where ``kdplug cache`` made none.

    Raises: ``RunError`` for a damaged one, and for that of another cache.
    """
    if recipe.training.teacher_cache is None or not recipe.distillation.is_caching_logits:
        return None
    folder = Path(recipe.training.teacher_cache)
    try:
        found = CacheFolder(folder).read_provenance()
    except RunError as error:
        raise error.at("teacher_cache") from error.__cause__
    if found is None:
        return None
    try:
        return CacheProvenance(found["metric"], Figures(**found["teacher"]))
    except (KeyError, TypeError) as error:
        again = f"kdplug cache RECIPE --out {folder} writes it again"
        raise RunError(f"{folder / ORIGIN} is damaged: {error}. {again}", field="teacher_cache") from error


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
