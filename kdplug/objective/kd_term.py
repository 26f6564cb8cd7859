"""The distillation loss on logits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdplug.contracts.loss_sum import LossSum
from kdplug.contracts.outputs import Outputs
from kdplug.errors import KdplugError, OutputsError, ShapeError
from kdplug.host import registry
from kdplug.objective.batch import Batch
from kdplug.objective.gradient import connected_zero, frozen
from kdplug.objective.precision import full, full_precision
from kdplug.objective.probability_shift import shift
from kdplug.objective.schedule import Schedule, build_schedule
from kdplug.objective.selection import Pair, head_masks, is_ignored, select
from kdplug.objective.temperature import Temperature
from kdplug.objective.term import loss_sum

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig


class KdTerm(nn.Module):
    """The loss between student and teacher logits, summed over heads."""

    name = "kd_loss"

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        try:
            component = registry.losses.build(config.kd_loss_type, site="kd")
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__
        self.schedule: Schedule = build_schedule(
            config.kd_loss_weight, config.kd_loss_weight_scheduler, "kd_loss_weight_scheduler"
        )
        self.loss: Any = component.target
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.temperature = Temperature(config.temperature, config.temperature_scheduler)
        self.shifts = config.probability_shift
        self.wants_labels = self.shifts or "labels" in self.inputs
        self._has_warned = False

    @property
    def weight(self) -> float:
        return self.schedule.base

    def parts(self, batch: Batch) -> tuple[LossSum, ...]:
        """One sum and count per head.

        Raises: ``OutputsError`` for logits, labels or masks that are missing or differ in number; ``ShapeError``.
        """
        student, teacher = self._logits(batch.student, "student"), self._logits(batch.teacher, "teacher")
        heads = len(student)
        if heads != len(teacher):
            raise OutputsError(
                f"the student returned {heads} logits and the teacher {len(teacher)}: heads are compared one by one",
                field="kd_loss_type",
            )
        if heads == 1 and batch.student.logits_mask is None and batch.teacher.logits_mask is None:
            return (self._head(Pair(student[0], teacher[0], self._labels(batch.student, 1)[0]), None, None, batch),)
        student_masks = head_masks(batch.student, heads, "student")
        teacher_masks = head_masks(batch.teacher, heads, "teacher")
        pairs = map(Pair, student, teacher, self._labels(batch.student, heads))
        masked = zip(pairs, student_masks, teacher_masks, strict=True)
        return tuple([self._head(pair, mask, other, batch) for pair, mask, other in masked])

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero([*self._logits(batch.student, "student"), *self.parameters()])

    def _logits(self, outputs: Outputs, side: str) -> tuple[Tensor, ...]:
        if outputs.logits is not None:
            return outputs.logits
        given = ", ".join(outputs.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the {side} returned no logits, only {given}. Return them from its adaptor, "
            "or set kd_loss_weight: 0 to train without it",
            field="kd_loss_weight",
        )

    def _labels(self, student: Outputs, heads: int) -> tuple[Tensor | None, ...]:
        if not self.wants_labels:
            return (None,) * heads
        if student.labels is None:
            if self.shifts:
                raise OutputsError("needs labels, and the student returned none", field="probability_shift")
            return (None,) * heads
        if len(student.labels) != heads:
            raise OutputsError(
                f"the student returned {len(student.labels)} labels for {heads} logits: each head needs its own",
                field="student.labels",
            )
        return student.labels

    def _head(self, pair: Pair, student_mask: Tensor | None, teacher_mask: Tensor | None, batch: Batch) -> LossSum:
        _check_labels(pair)
        student_mask, teacher_mask = (
            self._effective(student_mask, pair.student),
            self._effective(teacher_mask, pair.teacher),
        )
        student, teacher, labels = select(pair, student_mask, teacher_mask)
        if student.numel() == 0:
            return LossSum(connected_zero([student, *self.parameters()]), 0)
        teacher = frozen(teacher)
        if self.shifts and labels is not None:
            teacher = shift(teacher, labels)
        with full_precision(student):
            return self._loss(full(student), full(teacher), labels, batch)

    def _loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None, batch: Batch) -> LossSum:
        values = {
            "student_logits": student,
            "teacher_logits": teacher,
            "temperature": self.temperature.of(student, teacher, batch),
            "mask": None,
            "labels": labels,
            "progress": batch.progress,
            "step": batch.step,
            "total_steps": batch.total_steps,
        }
        try:
            return loss_sum(self.loss(*map(values.__getitem__, self.inputs)), self.owner)
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__

    def _effective(self, mask: Tensor | None, logits: Tensor) -> Tensor | None:
        if not is_ignored(mask, logits):
            return mask
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"logits_mask has no effect: the logits {list(logits.shape)} have one row per example and not per position",
                stacklevel=6,
            )
        return None


def _check_labels(pair: Pair) -> None:
    if pair.labels is not None and pair.labels.shape != pair.student.shape[:-1]:
        raise ShapeError(
            f"labels {list(pair.labels.shape)} do not fit logits {list(pair.student.shape)}: one label per item",
            field="student.labels",
        )
