"""The kd loss of one pair of logits, called as its signature asks."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import KdplugError, OutputsError, SignatureError
from kdplug.host.closed_form import closed_form_of
from kdplug.host.component import Component
from kdplug.objective.batch import Batch
from kdplug.objective.coarse import coarse_rows, coarse_student, coarse_teacher, expand_rows_
from kdplug.objective.probability_shift import shift
from kdplug.objective.temperature import Temperature


class PairLoss:
    """Calls a loss with what it asks for, the teacher's logits dense or sparse.

    A sparse teacher reaches a loss that asks for ``teacher_sparse`` as it is. For any other one both sides are put into K + 1
    categories, the classes that the cache names and all others together, as logits whose softmax over the temperature is
    exactly what each side gives these categories.
    """

    def __init__(self, component: Component, temperature: Temperature, *, shifts: bool) -> None:
        self.target: Any = component.target
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.temperature = temperature
        self.shifts = shifts
        self.takes_sparse = "teacher_sparse" in self.inputs
        self.rows = closed_form_of(component)

    def check(self, teacher: Tensor | SparseLogits | Any, labels: Tensor | None) -> None:
        """Raises: ``OutputsError`` where this loss cannot be computed from what is known of the teacher."""
        if not isinstance(teacher, SparseLogits):
            if self.takes_sparse and "teacher_logits" not in self.inputs:
                raise OutputsError(
                    f"{self.owner} asks for teacher_sparse, and the teacher's logits are dense", field="teacher.logits"
                )
            return
        self._check_sparse(teacher)
        if self.shifts and labels is not None:
            raise OutputsError(
                "needs the teacher's logit at each label, and SparseLogits need not hold it", field="probability_shift"
            )
        if not self.takes_sparse:
            self._check_coarse(teacher)

    def _check_sparse(self, teacher: SparseLogits) -> None:
        if self.temperature.scheduler is not None:
            raise OutputsError(
                f"makes a temperature of its own for each item, and SparseLogits hold what the teacher gave at "
                f"{teacher.temperature:g}",
                field="temperature_scheduler",
            )
        if not math.isclose(teacher.temperature, self.temperature.base, rel_tol=1e-6):
            raise OutputsError(
                f"is {self.temperature.base:g}, and the teacher's SparseLogits were taken at {teacher.temperature:g}: their "
                "tail cannot be softened again. Set the one or take the other anew",
                field="temperature",
            )

    def _check_coarse(self, teacher: SparseLogits) -> None:
        if teacher.tail is None or teacher.log_probs is None:
            raise OutputsError(
                f"{self.owner} needs the whole distribution, and the teacher's SparseLogits have no tail. Give one, or take a "
                "loss that asks for teacher_sparse",
                field="teacher.logits",
            )
        if "labels" in self.inputs:
            raise OutputsError(
                f"{self.owner} asks for labels, and with SparseLogits a label may be one of the classes that are known only "
                "as a sum. Take a loss without labels, or give dense logits",
                field="teacher.logits",
            )
        ids = teacher.ids
        if ids.device.type == "cpu" and ids.shape[-1] > 1:
            ordered = ids.sort(dim=-1).values
            if (ordered[..., 1:] == ordered[..., :-1]).any():
                raise OutputsError("hold a class twice for one item, and have a tail", field="teacher.logits")

    def __call__(self, student: Tensor, teacher: Tensor | SparseLogits, labels: Tensor | None, batch: Batch) -> Any:
        """What the loss returns, for logits in float32 at least, outside autocast.

        Raises: what the loss raises, with the path of its key.
        """
        sparse: SparseLogits | None = None
        dense: Tensor | None = None
        if isinstance(teacher, Tensor):
            dense = shift(teacher, labels) if self.shifts and labels is not None else teacher
        elif self.takes_sparse:
            sparse = teacher
        else:
            student, dense = coarse_student(student, teacher), coarse_teacher(teacher)
        values = {
            "student_logits": student,
            "teacher_logits": dense,
            "teacher_sparse": sparse,
            "temperature": self._temperature(student, dense, batch),
            "mask": None,  # what it leaves out is gone by now
            "labels": labels,
            "progress": batch.progress,
            "step": batch.step,
            "total_steps": batch.total_steps,
        }
        try:
            return self.target(*map(values.__getitem__, self.inputs))
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__

    def _temperature(self, student: Tensor, teacher: Tensor | None, batch: Batch) -> float | Tensor:
        if self.temperature.scheduler is None or teacher is None:
            return self.temperature.base
        return self.temperature.of(student, teacher, batch)

    def write_gradient(self, student: Tensor, teacher: Tensor | SparseLogits, labels: Tensor | None) -> Tensor:
        """The closed form: values ``[n]`` of rows ``[n, classes]``, whose student logits become their gradient.

        Raises: what the closed form raises, with the path of the loss; ``SignatureError`` for values that are not ``[n]``.
        """
        assert self.rows is not None
        temperature = self.temperature.base
        if self.shifts and labels is not None and isinstance(teacher, Tensor):
            teacher = shift(teacher, labels)
        try:
            if isinstance(teacher, Tensor) or self.takes_sparse:
                return self._checked(self.rows(student, teacher, temperature), student)
            coarse, parts = coarse_rows(student, teacher.ids, temperature)
            values = self._checked(self.rows(coarse, coarse_teacher(teacher).to(coarse.dtype), temperature), student)
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__
        expand_rows_(student, parts, coarse, teacher.ids)
        return values

    def _checked(self, values: Any, student: Tensor) -> Tensor:
        if isinstance(values, Tensor) and values.shape == student.shape[:-1]:
            return values
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise SignatureError(
            f"the closed form of {self.owner} must return one value for each of {student.shape[0]} rows, got {found}"
        )
