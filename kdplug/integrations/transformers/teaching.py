"""Run the teachers of a ``Trainer``. They are frozen, in eval mode, on the trainer's device and never wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.contracts.outputs import Outputs
from kdplug.engine.forward_state import modes
from kdplug.engine.teacher import Ensemble, Teacher
from kdplug.errors import RunError
from kdplug.integrations.transformers.inputs import Columns, Features, adapt
from kdplug.objective.objective import Objective


class Teaching:
    """Runs each teacher on its own columns, with the features that the config reads from it."""

    def __init__(self, teachers: Ensemble, config: DistillationConfig, columns: Columns) -> None:
        self._teachers = teachers
        self._columns = columns
        self._features = {key: Features(one.model, config, "teacher") for key, one in teachers.teachers.items()}
        self._shared: list[nn.Module] = []
        for one in teachers.teachers.values():
            one.adaptor = one.adaptor or adapt

    def ask(self, batch: Mapping[str, Any], precision: Callable[[], AbstractContextManager[Any]]) -> dict[str, Outputs]:
        """Run the teachers and return what the objective reads, by key."""
        for module in self._shared:  # the Trainer sets the student to train mode at each step
            module.training = False
        return {
            key: Outputs.read(self._asked(key, one, batch, precision()), f"teacher.{key}")
            for key, one in self._teachers.teachers.items()
        }

    def _asked(
        self, key: str, teacher: Teacher, batch: Mapping[str, Any], precision: AbstractContextManager[Any]
    ) -> Any:
        """Run a teacher.

        A custom adaptor gets its part of the batch with labels, the default one only what the model gets.
        """
        own = teacher.adaptor
        adaptor = None if own is None or own is adapt else lambda _, outputs: self._columns.adapted(own, batch, outputs)
        given = self._columns.teacher(key, batch)
        return teacher(given, self._features[key].arguments, None, precision, adaptor)

    @contextmanager
    def begun(self, objective: Objective, student: nn.Module, device: torch.device) -> Iterator[None]:
        """Freeze the teachers and move them to ``device``; afterwards, restore modes and ``requires_grad``.

        Modules shared with the student stay in eval mode within the block.

        Raises: ``RunError`` if DeepSpeed has partitioned a teacher.
        """
        for parameter in self._teachers.model.parameters():
            if getattr(parameter, "ds_id", None) is not None:
                raise RunError(
                    "DeepSpeed ZeRO-3 has partitioned the teacher, which runs outside the DeepSpeed engine. Load the "
                    "teacher before creating the TrainingArguments, so that every process holds all of it"
                )
        theirs = frozenset(self._teachers.model.modules())
        self._shared = [module for module in student.modules() if module in theirs]
        with modes(evaluating=self._teachers.model), self._teachers.frozen(student), self._teachers.hooked(objective):
            self._teachers.to(device)
            yield
