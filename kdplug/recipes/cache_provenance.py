"""Provenance of a recipe's teacher cache: the teacher's metrics, the test data behind them, and the settings of its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import FingerprintedTask, Task
from kdplug.engine.cache.folder import ORIGIN, CacheFolder
from kdplug.engine.checkpoint.identity import differences
from kdplug.errors import RunError
from kdplug.host.manifest import environment_record
from kdplug.host.registry import tasks
from kdplug.recipes.result import Figures
from kdplug.recipes.task import teacher_fit


@dataclass(frozen=True, slots=True)
class CacheProvenance:
    """Metrics of the teacher when the cache was built; ``metric`` is the task's.

    ``test`` is the fingerprint of the test part on which they were measured, ``None`` if it is unknown.
    """

    metric: str
    teacher: Figures
    test: Mapping[str, Any] | None = None

    def is_measured_on(self, test: Mapping[str, Any], metric: str) -> bool:
        """Return whether this is the metric, and the fingerprint is that of the test part on which it was measured."""
        return metric in self.teacher.metrics and not any(differences(self.test, json.loads(json.dumps(test))))

    def write(self, folder: Path) -> None:
        """Write the provenance into a complete cache.

        Raises: ``RunError`` if the folder cannot be written.
        """
        data = {**environment_record(), "metric": self.metric, "teacher": asdict(self.teacher), "test": self.test}
        CacheFolder(folder).write_origin(data)


def read_provenance(recipe: Recipe) -> CacheProvenance | None:
    """Return the provenance of the recipe's teacher cache; ``None`` if ``kdplug cache`` did not write one.

    Raises: ``RunError`` if it is damaged or belongs to another cache.
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
        return CacheProvenance(found["metric"], Figures(**found["teacher"]), found.get("test"))
    except (KeyError, TypeError) as error:
        remedy = f"Run kdplug cache RECIPE --out {folder} to write it again"
        raise RunError(f"{folder / ORIGIN} is damaged: {error}. {remedy}", field="teacher_cache") from error


def fingerprint(recipe: Recipe, task: Task) -> Mapping[str, Any]:
    """Return the settings that determine the teacher's outputs, in addition to the teacher's weights and the data.

    This is the task's own ``fingerprint``, or else all of its settings. For a teacher that the recipe trains, it
    includes the settings of that training and the seed.
    """
    if isinstance(task, FingerprintedTask):
        found = dict(task.fingerprint())
    else:
        found = {"task": tasks.build(recipe.task).qualified_spec()}
    fit = teacher_fit(task)
    return found if fit is None else {**found, "fit": {**fit, "seed": recipe.seed}}
