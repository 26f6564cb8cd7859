"""What a new recipe for a task starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

ATTRIBUTE = "new_recipe"
"""Where a task says what ``kdplug new`` writes for it."""

_Task = TypeVar("_Task", bound=Callable[..., Any])


def new_recipe(
    *, distillation: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> Callable[[_Task], _Task]:
    """Declare, above a task, what a new recipe for it has in place of the defaults: keys of ``distillation:`` and ``training:``.

    Only ``kdplug new`` looks at it. What a recipe leaves out keeps kdplug's own default, whatever its task. ::

        @new_recipe(training={"lr": 2e-4, "num_epochs": 3})
        def reviews(*, path: str): ...
    """

    def declare(task: _Task) -> _Task:
        setattr(task, ATTRIBUTE, {"distillation": dict(distillation or {}), "training": dict(training or {})})
        return task

    return declare
