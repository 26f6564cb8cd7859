"""The student's own losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdplug.errors import OutputsError
from kdplug.objective.batch import Batch
from kdplug.objective.gradient import connected_zero
from kdplug.objective.precision import full
from kdplug.objective.report import TermValue
from kdplug.objective.schedule import Schedule, build_schedule

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig


class HardLabelTerm(nn.Module):
    """The sum of the losses that the student's adaptor returned, each reduced to its mean."""

    name = "hard_label_loss"

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.schedule: Schedule = build_schedule(
            config.hard_label_weight, config.hard_label_weight_scheduler, "hard_label_weight_scheduler"
        )

    @property
    def weight(self) -> float:
        return self.schedule.base

    def value(self, batch: Batch, weight: float) -> TermValue:
        """The sum of the means, with count 1.

        Raises: ``OutputsError`` where the student returned no losses.
        """
        losses = self._losses(batch)
        total = _mean(losses[0])
        for loss in losses[1:]:
            total = total + _mean(loss)
        return TermValue(total, 1, weight)

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero(self._losses(batch))

    def _losses(self, batch: Batch) -> tuple[Tensor, ...]:
        if batch.student.losses is not None:
            return batch.student.losses
        given = ", ".join(batch.student.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the student returned no losses, only {given}. Return the student's own loss from its "
            "adaptor, or set hard_label_weight: 0 to train without it",
            field="hard_label_weight",
        )


def _mean(loss: Tensor) -> Tensor:
    return full(loss).mean() if loss.dim() else full(loss)
