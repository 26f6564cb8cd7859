"""Matches written in Python: a callable on the outputs of two modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.errors import ConfigError, KdplugError
from kdplug.objective.batch import Batch
from kdplug.objective.feature_comparison import layers
from kdplug.objective.numerics import connected_zero, frozen, full
from kdplug.objective.projection import project
from kdplug.objective.report import TermValue
from kdplug.objective.schedule import Schedule
from kdplug.objective.term import term_value


class CustomTerm(nn.Module):
    """``loss(student, teacher, student_mask, teacher_mask)`` on the tensors captured at two paths.

    ``projection`` is applied to the student's side; ``options`` are those of its optimizer group, if it is a module with
    parameters. The masks are the adaptors' ``inputs_mask``, or ``None``.

    Raises: ``ConfigError`` unless the weight is a finite number of at least 0.
    """

    mask_key = "inputs_mask"

    def __init__(
        self,
        name: str,
        *,
        layer_student: str,
        layer_teacher: str,
        loss: Callable[..., Any],
        weight: float = 1.0,
        projection: Callable[[Tensor], Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ConfigError(f"must be a finite number >= 0, got {weight!r}", field="weight")
        self.name = name
        self.layer_student, self.layer_teacher = layer_student, layer_teacher
        self.loss = loss
        self.owner = getattr(loss, "__name__", type(loss).__name__)
        self.schedule = Schedule(float(weight))
        self.projection = projection
        self.options = dict(options or {})

    @property
    def weight(self) -> float:
        return self.schedule.base

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Compute the loss. Raises: ``OutputsError`` without a captured tensor; ``SignatureError`` for an invalid result."""
        (student,) = layers(batch.student, "hidden", self.layer_student, "student")
        (teacher,) = layers(batch.teacher, "hidden", self.layer_teacher, "teacher")
        if self.projection is not None:
            given = self.projection
            student = project(given, student) if isinstance(given, nn.Module) else given(student)
        if not batch.autocast(student):
            return self._compared(student, teacher, batch, weight)
        with torch.autocast(student.device.type, enabled=False):
            return self._compared(student, teacher, batch, weight)

    def student_tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        return layers(batch.student, "hidden", self.layer_student, "student")

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero([*self.student_tensors(batch), *self.parameters()])

    def _compared(self, student: Tensor, teacher: Tensor, batch: Batch, weight: float) -> TermValue:
        _ = batch.student_mask, batch.teacher_mask  # validates them; the loss gets the originals
        masks = batch.student.inputs_mask, batch.teacher.inputs_mask
        try:
            return batch.certain(
                term_value(self.loss(full(student), full(frozen(teacher)), *masks), weight, self.owner)
            )
        except KdplugError as error:
            raise error.at("loss") from error.__cause__
