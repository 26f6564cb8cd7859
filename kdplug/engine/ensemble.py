"""Several teachers on one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.engine.teacher import Teacher
from kdplug.errors import OutputsError

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective


class Ensemble:
    """Teachers by key. Each gets the same batch and has its own adaptor; nothing is combined here."""

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)
        self.model: nn.Module = nn.ModuleList(teacher.model for teacher in self.teachers.values())

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> dict[str, Outputs]:
        """What the objective reads of each teacher, by key.

        Raises: ``OutputsError`` for outputs that cannot be read, or a ``cache`` that is no list with one for each teacher.
        """
        caches = self._caches(cache)
        with torch.no_grad(), precision or nullcontext():
            return {
                key: Outputs.read(teacher(batch, model_args, caches[key]), f"teacher.{key}")
                for key, teacher in self.teachers.items()
            }

    def to(self, device: torch.device) -> None:
        for teacher in self.teachers.values():
            teacher.to(device)

    @contextmanager
    def frozen(self, student: nn.Module | None = None) -> Iterator[None]:
        with ExitStack() as stack:
            for teacher in self.teachers.values():
                stack.enter_context(teacher.frozen(student))
            yield

    @contextmanager
    def hooked(self, objective: Objective) -> Iterator[None]:
        """Inside the block, the modules that the objective's matches name are read whenever the teachers are asked."""
        objective.connect(teacher={key: teacher.model for key, teacher in self.teachers.items()})
        with ExitStack() as stack:
            for place, teacher in enumerate(self.teachers.values()):
                stack.enter_context(teacher.capturing(objective.paths("teacher", place)))
            yield

    def _caches(self, cache: Any) -> dict[str, Any]:
        if cache is None:
            return dict.fromkeys(self.teachers)
        if isinstance(cache, Mapping) and cache.keys() == self.teachers.keys():
            return dict(cache)
        if isinstance(cache, (list, tuple)) and len(cache) == len(self.teachers):
            return dict(zip(self.teachers, cache, strict=True))
        raise OutputsError(
            f"must hold one for each of the {len(self.teachers)} teachers, as a list or by key "
            f"({', '.join(self.teachers)}), got {type(cache).__name__}",
            field="teacher_cache",
        )
