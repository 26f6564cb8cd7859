"""The student's own losses."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdplug.contracts.loss_sum import LossSum
from kdplug.errors import OutputsError
from kdplug.objective.batch import Batch
from kdplug.objective.gradient import connected_zero
from kdplug.objective.precision import full
from kdplug.objective.report import TermValue, over_heads
from kdplug.objective.schedule import Schedule, build_schedule

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.contracts.outputs import Loss


class HardLabelTerm(nn.Module):
    """The sum of the losses that the student's adaptor returned, each of them a mean over what it counts.

    A ``LossSum`` is divided by its count and a tensor by the number of its elements, so an empty one is 0. A scalar does not
    tell what it is a mean over and counts as one item. ``pools`` is set by a loop that divides a term by its count over
    several micro-batches or processes, where that makes a difference; a scalar is then warned of, once.
    """

    name = "hard_label_loss"
    mask_key = ""

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.schedule: Schedule = build_schedule(
            config.hard_label_weight, config.hard_label_weight_scheduler, "hard_label_weight_scheduler"
        )
        self.pools = False

    @property
    def weight(self) -> float:
        return self.schedule.base

    def value(self, batch: Batch, weight: float) -> TermValue:
        """The sum of the means, with what each of them counts.

        Raises: ``OutputsError`` where the student returned no losses, or integers.
        """
        losses = self._losses(batch)
        if len(losses) == 1:
            return self._counted(losses[0], weight)
        return over_heads([self._counted(loss, weight) for loss in losses])

    def _counted(self, loss: Loss, weight: float) -> TermValue:
        total = loss.total if isinstance(loss, LossSum) else loss
        if not total.is_floating_point():
            raise OutputsError(
                f"must be floating-point, got {total.dtype}. A sum and its count are one loss: kdplug.LossSum(total, count)",
                field="student.losses",
            )
        if isinstance(loss, LossSum):
            return TermValue(full(total), loss.count, weight)
        if total.dim():
            return TermValue(full(total).sum(), total.numel(), weight)
        if self.pools and self.training:
            self.pools = False
            warnings.warn(
                "hard_label_loss: the adaptor returned a scalar under losses, which does not tell how many labels it is a mean "
                "over. The micro-batches and processes of a step then count alike, which is the mean over all labels only where "
                "each has equally many. Return kdplug.LossSum(total, count), or one loss per item, to have it exact; "
                "normalization 'micro_batch' takes means of means",
                stacklevel=2,
            )
        return TermValue(full(total), 1, weight)

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        return [loss.total if isinstance(loss, LossSum) else loss for loss in self._losses(batch)]

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero(self.student_tensors(batch))

    def _losses(self, batch: Batch) -> tuple[Loss, ...]:
        if batch.student.losses is not None:
            return batch.student.losses
        given = ", ".join(batch.student.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the student returned no losses, only {given}. Return the student's own loss from its "
            "adaptor, or set hard_label_weight: 0 to train without it",
            field="hard_label_weight",
        )


def mark_pooled(objective: nn.Module, *, is_pooled: bool) -> None:
    """Tell the hard label terms of ``objective`` whether a step divides them over several micro-batches or processes."""
    for module in objective.modules():
        if isinstance(module, HardLabelTerm):
            module.pools = is_pooled
