"""What one call of the objective is computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.draw import Draws
from kdplug.objective.gradient import frozen
from kdplug.objective.mask import check_mask, doubt, extended_hint, nan_if
from kdplug.objective.precision import is_autocast_on
from kdplug.objective.report import TermValue

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


class Batch:
    """All models' outputs and how far the run is. ``draws`` has the seeds of losses that draw at random. Each mask of inputs is read once, when first asked for.

    ``teacher`` is the first of ``teachers``; ``of_teacher`` gives the same batch with another one there. ``looks`` has the
    values of masks checked on every device, which waits for it; otherwise they are checked on a CPU, and elsewhere
    ``certain`` makes a term that used a wrong one ``nan``.
    """

    __slots__ = (
        "_autocast",
        "_doubts",
        "_mask",
        "_masks",
        "_views",
        "draws",
        "looks",
        "progress",
        "step",
        "student",
        "teacher",
        "teachers",
        "total_steps",
    )

    def __init__(
        self,
        student: Outputs,
        teachers: tuple[Outputs, ...],
        progress: float,
        step: int,
        total_steps: int,
        *,
        draws: Draws | None = None,
        looks: bool = True,
    ) -> None:
        self.student = student
        self.teacher = teachers[0]
        self.teachers = teachers
        self.progress = progress
        self.step = step
        self.total_steps = total_steps
        self.draws = Draws(step) if draws is None else draws
        self.looks = looks
        self._mask: Tensor | None = None
        self._masks: dict[str, Tensor | None] = {}
        self._doubts: list[Tensor] = []
        self._autocast: bool | None = None
        self._views: dict[int, Batch] = {}

    def of_teacher(self, place: int) -> Batch:
        """The batch as a match that reads one of the teachers sees it; the same object each time."""
        if place == 0:
            return self
        if place not in self._views:
            own = (self.teachers[place],)
            self._views[place] = Batch(
                self.student,
                own,
                self.progress,
                self.step,
                self.total_steps,
                draws=self.draws,
                looks=self.looks,
            )
        return self._views[place]

    def autocast(self, tensor: Logits) -> bool:
        """Whether autocast is on for the device of ``tensor``, one of the student's. Asked of torch once."""
        if self._autocast is None:
            self._autocast = is_autocast_on(tensor.device.type)
        return self._autocast

    @property
    def match_mask(self) -> Tensor | None:
        """Bool, ``True`` where both models see an input; ``None`` where neither adaptor returned ``inputs_mask``.

        Raises: ``ShapeError`` where the two masks differ in shape; ``OutputsError`` for what is no mask.
        """
        if self._mask is None:
            self._mask = self._both()
        return self._mask

    @property
    def student_mask(self) -> Tensor | None:
        """Bool, ``True`` where the student sees an input. Raises: ``OutputsError`` for what is no mask."""
        return self._read("student", self.student.inputs_mask)

    @property
    def teacher_mask(self) -> Tensor | None:
        """Bool, ``True`` where the teacher sees an input. Raises: ``OutputsError`` for what is no mask."""
        return self._read("teacher", self.teacher.inputs_mask)

    def certain(self, value: TermValue) -> TermValue:
        """The value of a term that may have used masks: ``nan`` where one of them held other values than 0 and 1.

        Masks whose values were checked already change nothing.
        """
        return TermValue(nan_if(value.total, self._doubts), value.count, value.weight) if self._doubts else value

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

    def _both(self) -> Tensor | None:
        student, teacher = self.student.inputs_mask, self.teacher.inputs_mask
        if teacher is None or student is teacher:
            return self.student_mask
        if student is None:
            return self.teacher_mask
        if student.shape != teacher.shape:
            raise ShapeError(
                f"the student's inputs_mask {list(student.shape)} and the teacher's {list(teacher.shape)} differ in shape. "
                "A match compares position by position, so both models need the same inputs, or adaptors that align them"
                f"{extended_hint(student, teacher)}"
            )
        mine, theirs = self.student_mask, self.teacher_mask
        assert mine is not None
        assert theirs is not None
        return mine & theirs

    def _read(self, side: str, mask: Tensor | None) -> Tensor | None:
        if side not in self._masks:
            self._masks[side] = None if mask is None else self._as_bool(side, mask)
        return self._masks[side]

    def _as_bool(self, side: str, mask: Tensor) -> Tensor:
        owner = f"the {side}'s inputs_mask"
        if self.looks and not torch.compiler.is_compiling():
            check_mask(mask, owner)
        elif (found := doubt(mask, owner)) is not None:
            self._doubts.append(found)
        return frozen(mask) if mask.dtype is torch.bool else mask != 0
