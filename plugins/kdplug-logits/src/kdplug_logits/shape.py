"""Shape checks for logits and labels. Nothing is ever broadcast; errors name both shapes and the axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdplug import OutputsError, ShapeError

_AXES = {1: ("classes",), 2: ("batch", "classes"), 3: ("batch", "length", "classes")}


def written(tensor: Tensor) -> str:
    """Return the shape as ``[2, 4, 8]``."""
    return str(list(tensor.shape))


def require_logits(owner: str, student: object, teacher: object, *, classes: bool = True) -> Tensor:
    """Return the teacher's logits after checking both sides.

    Raises: ``ShapeError`` unless both are tensors of the same shape.

    Without ``classes`` the last axis may differ in size.
    """
    if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
        raise ShapeError(
            f"{owner}: student_logits and teacher_logits must be tensors, got {type(student).__name__} and "
            f"{type(teacher).__name__}"
        )
    if student.shape == teacher.shape and student.dim():
        return teacher
    if not student.dim() or student.dim() != teacher.dim():
        raise ShapeError(
            f"{owner}: student_logits {written(student)} and teacher_logits {written(teacher)} must have the same "
            "number of axes, at least one"
        )
    axes = student.dim() if classes else student.dim() - 1
    _require_axes(owner, student, teacher, _AXES.get(student.dim(), tuple(map(str, range(student.dim()))))[:axes])
    return teacher


def _require_axes(owner: str, student: Tensor, teacher: Tensor, axes: Sequence[str]) -> None:
    for axis, have, want in zip(axes, student.shape, teacher.shape, strict=False):
        if have != want:
            raise ShapeError(
                f"{owner}: student_logits {written(student)} and teacher_logits {written(teacher)} differ on axis "
                f"'{axis}': {have} against {want}"
            )


def require_three_classes(owner: str, logits: Tensor, why: str) -> None:
    """Reject two classes if the loss would be constant. ``why`` gives the reason and the fix.

    Raises: ``ShapeError`` if there are fewer than three.
    """
    if logits.shape[-1] < 3:
        raise ShapeError(f"{owner}: needs at least three classes, got student_logits {written(logits)}: {why}")


def require_labels(owner: str, labels: Tensor | None, logits: Tensor) -> Tensor:
    """Return the labels, one integer per item of ``logits``.

    Raises: ``OutputsError`` if there are none, they are not integers, or one is out of range (on a CPU); ``ShapeError`` for
    any other shape.
    """
    if labels is None:
        raise OutputsError(
            f"{owner}: needs labels, but the student returned none. Return labels from the student's adaptor"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise OutputsError(f"{owner}: labels must be integer class indices, got {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ShapeError(
            f"{owner}: the shape of labels, {written(labels)}, does not match logits {written(logits)}: it must be "
            f"{list(logits.shape[:-1])}, one label per item"
        )
    if labels.is_cpu and labels.numel() and not torch.compiler.is_compiling():
        largest, classes = int(labels.max()), logits.shape[-1]
        if largest >= classes:
            raise OutputsError(f"{owner}: label {largest} does not exist: there are {classes} classes")
    return labels
