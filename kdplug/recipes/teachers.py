"""The teachers of a recipe: one for all seeds, or one for each seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Task
from kdplug.engine.checkpoint.identity import model_identity
from kdplug.engine.observe.activity import busy
from kdplug.errors import ConfigError
from kdplug.recipes.arm import Arm
from kdplug.recipes.cache_provenance import CacheProvenance
from kdplug.recipes.output_folder import identity_of
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.saved_student import save_teacher
from kdplug.recipes.task import teacher_fit


def check_varied(recipe: Recipe, task: Task) -> None:
    """Raise ``ConfigError`` if the recipe varies a teacher that it does not train, or has stages."""
    if "teacher" in recipe.vary and recipe.stages:
        raise ConfigError("contains teacher, which stages do not support. Remove vary or stages", field="vary")
    if "teacher" in recipe.vary and not (recipe.has_task_teacher and teacher_fit(task) is not None):
        given = recipe.task.settings.get("teacher")
        loaded = f" (task.teacher is {given})" if given is not None else ""
        raise ConfigError(
            f"contains teacher, but the recipe does not train its teacher: task {recipe.task.name!r} returns a trained one{loaded}, "
            "which is the same for each seed. Let the task train the teacher, or remove vary",
            field="vary",
        )


def recipe_of_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe for the runs of a seed: if it varies the teacher, with ``seed`` as the seed of the teacher."""
    return recipe.model_copy(update={"seed": seed}) if "teacher" in recipe.vary else recipe


@dataclass(slots=True)
class Teachers:
    """Trains and loads the teachers of a recipe. At most one is in memory.

    ``origin`` is the provenance of the cache that the recipe names, and ``record`` the content of ``kdplug-run.json``.
    """

    runner: RecipeRunner
    origin: CacheProvenance | None
    record: Mapping[str, Any]
    _held: tuple[int, nn.Module | None] | None = None
    _identities: dict[int, str] = field(default_factory=dict)

    def runner_of(self, seed: int) -> RecipeRunner:
        """Return the runner of the recipe of a seed."""
        return replace(self.runner, recipe=recipe_of_seed(self.runner.recipe, seed))

    def key(self, seed: int) -> int:
        """Return the seed of the teacher that the students of a seed have."""
        return self.runner_of(seed).recipe.seed

    def model(self, seed: int) -> nn.Module | None:
        """Return the trained teacher of a seed; ``None`` if only its cached outputs and metrics are used."""
        key = self.key(seed)
        if self._held is None or self._held[0] != key:
            self._held = None  # free the memory of the other one first
            found = self._loaded(key) if key in self._identities else self._trained(key)
            self._held = key, found
            if key not in self._identities:
                with busy("Hashing the teacher"):
                    data = [identity_of(self.record), None if found is None else model_identity(found)]
                    if self.runner.recipe.stages:
                        data.append(self.record["recipe"]["stages"])
                self._identities[key] = sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        return self._held[1]

    def identity(self, seed: int) -> str:
        """Return a digest of everything that the results of a seed depend on: complete runs with it are not repeated."""
        if (key := self.key(seed)) not in self._identities:
            self.model(seed)
        return self._identities[key]

    def _loaded(self, key: int) -> nn.Module | None:
        runner = self.runner_of(key)
        return runner.loaded_teacher(Path(runner.recipe.output_dir))

    def _trained(self, key: int) -> nn.Module | None:
        """Return the teacher, saved if the recipe trains a single one, or ``None`` if its outputs and metrics are cached."""
        varies = "teacher" in self.runner.recipe.vary
        runner, origin = self.runner_of(key), self.origin
        if origin is None:
            teacher = (replace(runner, seed=key) if varies else runner).teacher()
            if teacher is not None and runner.fit() is not None and not varies:
                with busy("Saving the teacher"):
                    save_teacher(runner.task, teacher, Path(runner.recipe.output_dir) / Arm.TEACHER, self.record)
            return teacher
        cached = f"Using cached teacher outputs from {runner.recipe.training.teacher_cache}"
        if origin.is_measured_on(self.record["data"]["test"], runner.metric.name):
            runner.say(f"{cached}. The teacher metrics are those stored with the cache.")
            return None
        runner.say(
            f"{cached}. The cache's teacher metrics are from a different test part, so the teacher is evaluated again."
        )
        return runner.cached_teacher()
