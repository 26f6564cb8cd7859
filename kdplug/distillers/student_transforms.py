"""Transforms of a student: prepare it for training, finish it for use."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from kdplug.contracts.student_transform import FINISH_IS_COSTLY, StudentTransform
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.component import Component
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.registry import student_transforms

_FIELD = "student.transforms"


class StudentTransforms:
    """Transforms that prepare a student in order, before the optimizer is built, and finish it in reverse order.

    ``specs`` name them as a recipe does: ``"lora"``, ``["lora", 8]`` or ``{"name": "lora", "rank": 8}``. A recipe calls both
    methods itself; in Python::

        transforms = kdplug.StudentTransforms([{"name": "lora", "rank": 8}])
        student = transforms.prepare(student)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        GeneralDistiller(train_config, distill_config, teacher, student).train(optimizer, dataloader, num_epochs=3)
        finished = transforms.finish(student)

    Checkpoints hold the prepared student. In a ``kdplug.Evaluation``, ``finished_copy`` returns what would be saved.

    Raises: ``EntryError`` or ``SettingError`` for a name or setting that does not exist; ``ConfigError`` for an entry that
    lacks a method.
    """

    def __init__(self, specs: Iterable[Any]) -> None:
        self._components: list[Component] = []
        for place, spec in enumerate(specs):
            try:
                component = student_transforms.build(spec)
                _check(component)
            except KdplugError as error:
                raise error.at(_FIELD, place) from error.__cause__
            self._components.append(component)

    def __bool__(self) -> bool:
        return bool(self._components)

    @property
    def is_costly(self) -> bool:
        """True if finishing takes too long for evaluations during training."""
        return any(getattr(one.target, FINISH_IS_COSTLY, False) for one in self._components)

    def prepare(self, student: nn.Module) -> nn.Module:
        """Return the student to train. ``student`` may be changed.

        Raises: ``ConfigError`` if a transform returns no module or no parameter is left to train.
        """
        for place in range(len(self._components)):
            student = self._run(place, "prepare", student)
        if self._components and not any(parameter.requires_grad for parameter in student.parameters()):
            raise ConfigError(
                "leave no parameter of the student to train: set requires_grad of some to true in prepare", field=_FIELD
            )
        return student

    def finish(self, student: nn.Module) -> nn.Module:
        """Return the student to measure and save. ``student`` may be changed.

        Raises: ``ConfigError`` if a transform returns no module.
        """
        for place in reversed(range(len(self._components))):
            student = self._run(place, "finish", student)
        return student

    def finished_copy(self, student: nn.Module) -> nn.Module:
        """Return the finished form of a student that is still trained; ``student`` itself if there are no transforms."""
        return self.finish(separate_copy(student)) if self._components else student

    def _run(self, place: int, method: str, student: nn.Module) -> nn.Module:
        component = self._components[place]
        entry = component.entry
        call = getattr(component.target, method)
        done = run_plugin_code(lambda: call(student), f"{method} of {entry.qualified!r}", entry.dist, "build")
        if isinstance(done.error, KdplugError):
            raise done.error.at(_FIELD, place)
        if done.error is not None:
            raise ConfigError(
                f"{method} of {entry.qualified} failed: {described(done.error)}", field=f"{_FIELD}.{place}"
            ) from done.error
        if not isinstance(done.value, nn.Module):
            raise ConfigError(
                f"{method} of {entry.qualified} must return the student, a module, got {type(done.value).__name__}",
                field=f"{_FIELD}.{place}",
            )
        return done.value


def separate_copy(student: nn.Module) -> nn.Module:
    """Return a deep copy from which parametrizations can be removed.

    ``deepcopy`` leaves the copy of a parametrized module in the class that torch made for the original, and
    ``remove_parametrizations`` deletes the parameter from that class.
    """
    copied = copy.deepcopy(student)
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            own = type(module)
            held = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(own.__name__, own.__bases__, held)
    return copied


def _check(component: Component) -> None:
    if not isinstance(component.target, StudentTransform):
        lacking = [name for name in ("prepare", "finish") if not hasattr(component.target, name)]
        raise ConfigError(f"{component.entry.qualified} is not a student transform: it lacks {', '.join(lacking)}")
