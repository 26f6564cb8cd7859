"""A recipe's teacher that the task does not build: an external one, the student without adapters, a copy, or none."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from torch import nn

from kdplug.config.error_path import prefixed
from kdplug.config.recipe import Recipe
from kdplug.config.teacher import COPY, SELF, WORDS
from kdplug.contracts.task import StartsStudent, Task
from kdplug.contracts.teacher import ExternalTeacher
from kdplug.distillers.session import TeacherModel
from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.training_module import Adaptor
from kdplug.errors import ConfigError
from kdplug.host.registry import teachers


def other_teacher(recipe: Recipe, student: nn.Module) -> TeacherModel:
    """Return the teacher of a distiller for ``student``, if it is not the task's."""
    if recipe.teacher == COPY:
        return deepcopy(student)
    return "self" if recipe.teacher == SELF else external_teacher(recipe)


def teacher_adaptor(recipe: Recipe, task: Task) -> Adaptor | None:
    """Return the adaptor of the teacher; ``None`` for an external teacher, which needs none."""
    if recipe.has_task_teacher:
        return task.teacher_adaptor
    return task.student_adaptor if recipe.teacher in (SELF, COPY) else None


def external_teacher(recipe: Recipe) -> ExternalTeacher | None:
    """Build the external teacher that the recipe names; ``None`` if it names none.

    Raises: ``KdplugError`` with the path of one that cannot be used.
    """
    if recipe.teacher in (None, *WORDS):
        return None
    with prefixed("teacher"):
        component = teachers.build(recipe.teacher)
        found = component.target
        if not isinstance(found, ExternalTeacher):
            raise ConfigError(
                f"{component.entry.qualified} is not a teacher: it lacks __call__(batch) or fingerprint()"
            )
    return found


def check_start(recipe: Recipe, task: Task) -> None:
    """Raise ``ConfigError`` if the task starts the student from its teacher, and the recipe has another one."""
    if not recipe.has_task_teacher and isinstance(task, StartsStudent) and task.starts_student:
        raise ConfigError(
            f"is {shown_teacher(recipe)}, but task {recipe.task.name!r} starts the student from the teacher that it builds. Change "
            "the task's setting, or remove this key",
            field="teacher",
        )


def shown_teacher(recipe: Recipe) -> str:
    """Return the recipe's teacher for messages."""
    return "none" if recipe.teacher is None else recipe.teacher.name


def needs_no_server(recipe: Recipe) -> bool:
    """Return whether an external teacher has a cache. If the cache is complete, the teacher is not called."""
    cache = recipe.training.teacher_cache
    if recipe.has_task_teacher or cache is None or not recipe.distillation.is_caching_logits:
        return False
    return CacheFolder(Path(cache)).manifest() is not None
