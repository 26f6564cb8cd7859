"""The teachers of a ``Trainer``: frozen, in eval mode, on its device, and never wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.contracts.outputs import Outputs
from kdplug.engine.forward_state import modes
from kdplug.engine.teacher import Ensemble
from kdplug.errors import RunError
from kdplug.integrations.transformers.inputs import Columns, Features, adapt
from kdplug.objective.objective import Objective


class Teaching:
    """Asks each teacher with the columns and for the features that are its own."""

    def __init__(self, teachers: Ensemble, config: DistillationConfig, columns: Columns) -> None:
        self._teachers = teachers
        self._columns = columns
        self._features = {key: Features(one.model, config, "teacher") for key, one in teachers.teachers.items()}
        self._shared: list[nn.Module] = []
        for one in teachers.teachers.values():
            one.adaptor = one.adaptor or adapt

    def ask(self, batch: Mapping[str, Any], precision: Callable[[], AbstractContextManager[Any]]) -> dict[str, Outputs]:
        """What the objective reads of each teacher, by key."""
        for module in self._shared:  # the Trainer puts the student in train mode at each step
            module.training = False
        return {
            key: Outputs.read(
                one(self._columns.teacher(key, batch), self._features[key].arguments, None, precision()),
                f"teacher.{key}",
            )
            for key, one in self._teachers.teachers.items()
        }

    @contextmanager
    def begun(self, objective: Objective, student: nn.Module, device: torch.device) -> Iterator[None]:
        """Inside the block the teachers can be asked; afterwards their modes and parameters are as before.

        Modules that are the student's as well stay in eval mode.

        Raises: ``RunError`` where DeepSpeed has spread a teacher over the processes.
        """
        for parameter in self._teachers.model.parameters():
            if getattr(parameter, "ds_id", None) is not None:
                raise RunError(
                    "DeepSpeed ZeRO-3 has partitioned the teacher, which is called outside of its engine. Load the teacher "
                    "before the TrainingArguments are made, so that every process has all of it"
                )
        theirs = frozenset(self._teachers.model.modules())
        self._shared = [module for module in student.modules() if module in theirs]
        with modes(evaluating=self._teachers.model), self._teachers.frozen(student), self._teachers.hooked(objective):
            self._teachers.to(device)
            yield
