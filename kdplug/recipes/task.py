"""The task and the distillation that a recipe names, ready for use."""

from __future__ import annotations

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Task
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.component import Component
from kdplug.host.registry import tasks
from kdplug.objective.objective import Objective


def build_task(recipe: Recipe) -> tuple[Component, Task]:
    """The task of a recipe, and the component that it is.

    Raises: ``EntryError``, ``SettingError`` for what the recipe says of it; ``ConfigError`` where it lacks a method.
    """
    try:
        component = tasks.build(recipe.task)
    except KdplugError as error:
        raise error.at("task") from error.__cause__
    task = component.target
    if not isinstance(task, Task):
        lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(task, name)]
        raise ConfigError(f"{component.entry.qualified} is no task: it lacks {', '.join(lacking)}", field="task")
    return component, task


def resolve_distillation(recipe: Recipe) -> tuple[DistillationConfig, list[str]]:
    """The distillation with qualified names and every setting, and the names of its terms.

    Raises: ``KdplugError`` with the path of what cannot be used.
    """
    try:
        distillation = recipe.distillation.resolved()
        return distillation, [term.name for term in Objective(distillation).terms]
    except KdplugError as error:
        raise error.at("distillation") from error.__cause__
