"""Prepend the path of a field to a config error, so that its message names the full path in the recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from kdplug.config.distillation import DistillationConfig
from kdplug.config.key import keys_that_need
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.stage import CACHING, Stage
from kdplug.config.training import LoopConfig
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.registry import tasks

Path = tuple[object, ...]
"""Path of a field: ``("intermediate_matches", 1, "loss")``."""


@contextmanager
def prefixed(*path: object) -> Iterator[None]:
    """Prefix the field of an error raised in the block with ``path``."""
    try:
        yield
    except KdplugError as error:
        raise error.at(*path) from error.__cause__


@contextmanager
def in_stage(stage: Stage) -> Iterator[None]:
    """Name the stage in an error raised in the block, unless its field is one that all stages share."""
    try:
        yield
    except KdplugError as error:
        above = _above(error, stage.recipe)
        error = error if above is None else error.at(above)
        first, _, rest = error.field.partition(".")
        setting = re.match(r"(base\.)*student\b\.?", rest) if first == "task" and stage.has_own_student else None
        if setting is not None:
            error.field = ".".join(filter(None, ("student", rest[setting.end() :])))
        elif first in Recipe.model_fields and (first not in _OF_STAGE or rest.partition(".")[0] in _SHARED):
            raise
        raise error.at("stages", stage.place) from error.__cause__


_OF_STAGE = ("distillation", "training")
_SHARED = (CACHING, *keys_that_need(LoopConfig, CACHING))


P = ParamSpec("P")
R = TypeVar("R")


def qualify_errors(carry_out: Callable[Concatenate[Recipe, P], R]) -> Callable[Concatenate[Recipe, P], R]:
    """Decorate ``carry_out(recipe, …)`` so that its errors name each field by its path in the recipe.

    Errors of the objective name ``kd_loss_type``, those of the engine ``precision``, those of a task ``data.train``. In
    a recipe these are ``distillation.kd_loss_type``, ``training.precision`` and ``task.data.train``.
    """

    @wraps(carry_out)
    def named(recipe: Recipe, /, *args: P.args, **more: P.kwargs) -> R:
        try:
            return carry_out(recipe, *args, **more)
        except KdplugError as error:
            above = _above(error, recipe)
            raise (error if above is None else error.at(above)) from error.__cause__

    return named


def _above(error: KdplugError, recipe: Recipe) -> str | None:
    """Return the recipe key that holds the field; ``None`` if the path is complete or not part of a recipe."""
    key = error.field.partition(".")[0]
    if not key or key in Recipe.model_fields:
        return None
    if key in DistillationConfig.model_fields:
        return "distillation"
    if key in RecipeTraining.model_fields:
        return "training"
    # Outputs of an adaptor have such names too (student.labels), but their errors are not ConfigErrors.
    is_setting = isinstance(error, ConfigError) and key in tasks.entry(recipe.task.name).settings.model_fields
    return "task" if is_setting else None
