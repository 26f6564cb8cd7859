"""The task and the distillation that a recipe names, ready for use."""

from __future__ import annotations

from typing import NamedTuple

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Task
from kdplug.contracts.task_option import ReadsAware, SelfChecking
from kdplug.errors import ConfigError
from kdplug.host.component import Component
from kdplug.host.registry import tasks
from kdplug.objective.field import below
from kdplug.objective.key import keys_read
from kdplug.objective.objective import Objective


def build_task(recipe: Recipe) -> tuple[Component, Task]:
    """The task of a recipe, and the component that it is.

    Raises: ``EntryError``, ``SettingError`` for what the recipe says of it; ``ConfigError`` where it lacks a method.
    """
    with below("task"):
        component = tasks.build(recipe.task)
    task = component.target
    if not isinstance(task, Task):
        lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(task, name)]
        raise ConfigError(f"{component.entry.qualified} is no task: it lacks {', '.join(lacking)}", field="task")
    return component, task


class Resolved(NamedTuple):
    """A distillation with qualified names and every setting, the names of its terms, and the adaptor keys that they read."""

    distillation: DistillationConfig
    terms: list[str]
    reads: frozenset[str]


def resolve_distillation(recipe: Recipe) -> Resolved:
    """The distillation of a recipe, looked up.

    Raises: ``KdplugError`` with the path of what cannot be used.
    """
    with below("distillation"):
        distillation = recipe.distillation.resolved()
        objective = Objective(distillation)
        return Resolved(distillation, [term.name for term in objective.terms], keys_read(objective))


def prepare(task: Task, reads: frozenset[str]) -> None:
    """Tell the task what the objective reads, and let it look for what would end the run later.

    Raises: ``KdplugError`` with the path of the task's setting.
    """
    with below("task"):
        if isinstance(task, ReadsAware):
            task.expect(reads)
        if isinstance(task, SelfChecking):
            task.check()
