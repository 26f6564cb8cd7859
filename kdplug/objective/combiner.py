"""Several teachers' logits as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdplug.errors import KdplugError, ShapeError, SignatureError
from kdplug.host import registry
from kdplug.objective.batch import Batch
from kdplug.objective.gradient import frozen
from kdplug.objective.precision import full
from kdplug.objective.teacher import Names, side

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig


class Combiner(nn.Module):
    """Calls the combiner that a config names. It belongs to the teachers' side: nothing in it is trained."""

    def __init__(self, config: DistillationConfig, names: Names) -> None:
        super().__init__()
        try:
            component = registry.teacher_combiners.build(config.teacher_combiner)
        except KdplugError as error:
            raise error.at("teacher_combiner") from error.__cause__
        self.combine: Any = component.target
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.names = names
        self.temperature = float(config.temperature)
        self.wants_temperature = "temperature" in self.inputs
        self.wants_labels = "labels" in self.inputs
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(
        self,
        teachers: Sequence[Tensor],
        student: Tensor,
        labels: Tensor | None,
        batch: Batch,
        temperature: Tensor | float | None = None,
    ) -> Tensor:
        """The combined logits of one head. ``temperature`` is that of the loss, where it is not the configured one.

        Shapes: logits ``[*items, classes]`` each, labels ``[*items]``; the result has the shape of the logits.
        Raises: ``ShapeError`` where a teacher's differ from the student's; ``SignatureError`` for what a combiner may not
        return.
        """
        for place, logits in enumerate(teachers):
            if logits.shape != student.shape:
                raise ShapeError(
                    f"the student's {list(student.shape)} and those of {side(self.names, place)} {list(logits.shape)} must "
                    "have one shape, classes last",
                    field="logits",
                )
        values = {
            "teacher_logits_list": tuple([full(frozen(logits)) for logits in teachers]),
            "student_logits": full(student.detach()),
            "labels": labels,
            "temperature": self.temperature if temperature is None else temperature,
            "progress": batch.progress,
            "step": batch.step,
            "total_steps": batch.total_steps,
        }
        device = student.device.type
        with torch.autocast(device, enabled=False) if batch.autocast(student) else nullcontext():
            try:
                combined = self.combine(*map(values.__getitem__, self.inputs))
            except KdplugError as error:
                raise error.at("teacher_combiner") from error.__cause__
        return self._checked(combined, student.shape)

    def _checked(self, combined: Any, shape: torch.Size) -> Tensor:
        if isinstance(combined, Tensor) and combined.shape == shape:
            return combined
        found = list(combined.shape) if isinstance(combined, Tensor) else type(combined).__name__
        raise SignatureError(f"{self.owner} must return logits {list(shape)}, got {found}", field="teacher_combiner")
