"""What one call of the objective is computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.gradient import frozen
from kdplug.objective.precision import is_autocast_on

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


class Batch:
    """All models' outputs and how far the run is. The mask of the matches is worked out once, when first asked for.

    ``teacher`` is the first of ``teachers``; ``of_teacher`` gives the same batch with another one there.
    """

    __slots__ = ("_autocast", "_mask", "_views", "progress", "step", "student", "teacher", "teachers", "total_steps")

    def __init__(
        self, student: Outputs, teachers: tuple[Outputs, ...], progress: float, step: int, total_steps: int
    ) -> None:
        self.student = student
        self.teacher = teachers[0]
        self.teachers = teachers
        self.progress = progress
        self.step = step
        self.total_steps = total_steps
        self._mask: Tensor | None = None
        self._autocast: bool | None = None
        self._views: dict[int, Batch] = {}

    def of_teacher(self, place: int) -> Batch:
        """The batch as a match that reads one of the teachers sees it; the same object each time."""
        if place == 0:
            return self
        if place not in self._views:
            own = (self.teachers[place],)
            self._views[place] = Batch(self.student, own, self.progress, self.step, self.total_steps)
        return self._views[place]

    def autocast(self, tensor: Logits) -> bool:
        """Whether autocast is on for the device of ``tensor``, one of the student's. Asked of torch once."""
        if self._autocast is None:
            self._autocast = is_autocast_on(tensor.device.type)
        return self._autocast

    @property
    def match_mask(self) -> Tensor | None:
        """Bool, ``True`` where both models see an input; ``None`` where neither adaptor returned ``inputs_mask``.

        Raises: ``ShapeError`` where the two masks differ in shape.
        """
        if self._mask is None:
            self._mask = _both(self.student.inputs_mask, self.teacher.inputs_mask)
        return self._mask

    @property
    def student_mask(self) -> Tensor | None:
        """Bool, ``True`` where the student sees an input."""
        return None if self.student.inputs_mask is None else _bool(self.student.inputs_mask)

    @property
    def teacher_mask(self) -> Tensor | None:
        """Bool, ``True`` where the teacher sees an input."""
        return None if self.teacher.inputs_mask is None else _bool(self.teacher.inputs_mask)

    @property
    def match_labels(self) -> Tensor | None:
        """The student's labels, for a match that asks for them.

        Raises: ``OutputsError`` where there are several, since a match belongs to no head.
        """
        labels = self.student.labels
        if labels is None:
            return None
        if len(labels) > 1:
            raise OutputsError(
                f"the loss asks for labels, but the student returned {len(labels)} of them and a match belongs to no head"
            )
        return labels[0]


def _both(student: Tensor | None, teacher: Tensor | None) -> Tensor | None:
    if teacher is None or student is None or student is teacher:
        one = teacher if student is None else student
        return None if one is None else _bool(one)
    if student.shape != teacher.shape:
        raise ShapeError(
            f"the student's inputs_mask {list(student.shape)} and the teacher's {list(teacher.shape)} differ in shape. "
            "A match compares position by position, so both models need the same inputs, or adaptors that align them"
        )
    return _bool(student) & _bool(teacher)


def _bool(mask: Tensor) -> Tensor:
    return frozen(mask) if mask.dtype is torch.bool else mask != 0
