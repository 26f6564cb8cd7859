"""Record how a recipe's teacher cache was built: the teacher's settings and metrics, and the test data behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import FingerprintedTask, Task
from kdplug.engine.cache.folder import ORIGIN, CacheFolder
from kdplug.engine.checkpoint.identity import differences
from kdplug.engine.external_teacher import CalledTeacher
from kdplug.errors import RunError
from kdplug.host.manifest import environment_record
from kdplug.host.registry import tasks
from kdplug.recipes.arm import ArmRun
from kdplug.recipes.measure import Figures
from kdplug.recipes.other_teacher import external_teacher
from kdplug.recipes.result import RunFigures
from kdplug.recipes.task import teacher_fit


@dataclass(frozen=True, slots=True)
class CacheProvenance:
    """The teacher's metrics, speed and size when the cache was built; ``metric`` is the name of the task's main metric.

    ``test`` is the fingerprint of the test part on which the metrics were measured, ``None`` if it is unknown.
    """

    metric: str
    metrics: Mapping[str, float]
    figures: Figures
    test: Mapping[str, Any] | None = None

    @property
    def identity(self) -> str:
        """A digest of the test part. The result that is stored with the cache has the same identity."""
        return sha256(json.dumps(self.test, sort_keys=True).encode()).hexdigest()

    def run_figures(self, run: ArmRun) -> RunFigures:
        """Return the teacher's result without validation and predictions, which an earlier version did not store."""
        return RunFigures(
            arm=run.arm,
            seed=run.seed,
            metrics=self.metrics,
            validation={},
            best_step=None,
            steps=0,
            examples=0,
            labelled=None,
            seconds=None,
            peak_memory=None,
            parameters=self.figures.parameters,
            bytes=self.figures.bytes,
        )

    def is_measured_on(self, test: Mapping[str, Any], metric: str) -> bool:
        """Return whether the stored metrics are of this metric and were measured on the test part with this fingerprint."""
        return metric in self.metrics and not any(differences(self.test, json.loads(json.dumps(test))))

    def write(self, folder: Path) -> None:
        """Write the provenance into a complete cache.

        Raises: ``RunError`` if the folder cannot be written.
        """
        teacher = {"metrics": dict(self.metrics), **asdict(self.figures)}
        data = {**environment_record(), "metric": self.metric, "teacher": teacher, "test": self.test}
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
        metrics, figures = found["teacher"].pop("metrics"), Figures(**found["teacher"])
        return CacheProvenance(found["metric"], metrics, figures, found.get("test"))
    except (KeyError, TypeError, AttributeError) as error:
        remedy = f"Run kdplug cache RECIPE --out {folder} to write it again"
        raise RunError(f"{folder / ORIGIN} is damaged: {error}. {remedy}", field="teacher_cache") from error


def fingerprint(recipe: Recipe, task: Task) -> Mapping[str, Any]:
    """Return the settings that determine the teacher's outputs, in addition to the teacher's weights and the data.

    This is the task's own ``fingerprint``, or else all of its settings. For a teacher that the recipe trains, it
    includes the settings of that training and the seed. Of a teacher that is not the task's, it is its own fingerprint.
    """
    if not recipe.has_task_teacher:
        external = external_teacher(recipe)
        return {} if external is None else {"teacher": CalledTeacher(external).fingerprint()}
    if isinstance(task, FingerprintedTask):
        found = dict(task.fingerprint())
    else:
        found = {"task": tasks.build(recipe.task).qualified_spec()}
    fit = teacher_fit(task)
    return found if fit is None else {**found, "fit": {**fit, "seed": recipe.seed}}
