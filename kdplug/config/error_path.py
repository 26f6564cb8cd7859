"""The path of a field in the recipe, put together from what each part of kdplug knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.registry import tasks

Path = tuple[object, ...]
"""The path of a field: ``("intermediate_matches", 1, "loss")``."""


@contextmanager
def prefixed(*path: object) -> Iterator[None]:
    """Put ``path`` in front of the field that an error inside the block names."""
    try:
        yield
    except KdplugError as error:
        raise error.at(*path) from error.__cause__


P = ParamSpec("P")
R = TypeVar("R")


def qualify_errors(carry_out: Callable[Concatenate[Recipe, P], R]) -> Callable[Concatenate[Recipe, P], R]:
    """Let each error of ``carry_out(recipe, …)`` name its field as the recipe does.

    The objective says ``kd_loss_type``, the engine ``precision``, and a task that reads an example ``data.train``: none of them
    knows that it is called by a recipe, where these are ``distillation.kd_loss_type``, ``training.precision``, ``task.data.train``.
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
    """The key of the recipe under which the field stands; ``None`` where it is complete, or is no field of a recipe."""
    key = error.field.partition(".")[0]
    if not key or key in Recipe.model_fields:
        return None
    if key in DistillationConfig.model_fields:
        return "distillation"
    if key in RecipeTraining.model_fields:
        return "training"
    # What an adaptor returned has such names as well, student.labels, and is no ConfigError.
    is_setting = isinstance(error, ConfigError) and key in tasks.entry(recipe.task.name).settings.model_fields
    return "task" if is_setting else None
