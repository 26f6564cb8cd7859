"""Select the items of a pair of logits by mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.item import keep
from kdplug.contracts.outputs import Outputs
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.batch import extended_hint, places_that_count
from kdplug.objective.sequences import Sequences
from kdplug.objective.teacher import Names, side

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


class HeadLogits(NamedTuple):
    """One head's logits, student and teacher, with their labels and, if the loss requests them, the examples' ids.

    ``temperature`` is the one at which several teachers' logits were combined, which the loss must use too; ``None`` if the
    loss determines it. ``sequences`` are the places of the items, for a loss that declares ``whole_sequences``.
    """

    student: Logits
    teacher: Logits
    labels: Tensor | None
    temperature: Tensor | float | None = None
    sequences: Sequences | None = None
    ids: Tensor | None = None


def heads_of(count: int) -> str:
    """Return a number of heads and their indices, for errors: ``2 heads (0 to 1)``."""
    return "1 head (index 0)" if count == 1 else f"{count} heads (0 to {count - 1})"


def head_masks(outputs: Outputs, heads: int, side: str) -> tuple[Tensor | None, ...]:
    """Return one logits mask per head; a single mask is repeated.

    Raises: ``OutputsError`` if the numbers do not agree.
    """
    masks = outputs.logits_mask
    if masks is None:
        return (None,) * heads
    if len(masks) == heads:
        return masks
    if len(masks) == 1:
        return masks * heads
    raise OutputsError(
        f"{len(masks)} masks do not match logits of {heads_of(heads)}. Return one mask for all heads, or one per head",
        field=f"{side}.logits_mask",
    )


def select(pair: HeadLogits, student_mask: Tensor | None, teacher_mask: Tensor | None) -> HeadLogits:
    """Keep the items whose mask is 1; labels and ids follow the student's items.

    Each side has its own mask; if only one side has one, it applies to both. The masks may select different positions,
    but must select the same number. Without a mask the pair is returned unchanged.

    Shapes: logits ``[*items, classes]``, masks ``[*items]`` to logits ``[n, classes]``.
    Raises: ``ShapeError``; ``OutputsError`` for a mask that holds a value other than 0 and 1.
    """
    student, teacher, labels, *_, ids = pair
    if student_mask is None and teacher_mask is None:
        return pair
    _check_labels(pair)
    mine = student_mask if student_mask is not None else teacher_mask
    theirs = teacher_mask if teacher_mask is not None else student_mask
    student_rows = _rows(mine, student, "student", "teacher" if student_mask is None else "student")
    shared = mine is theirs and student.shape[:-1] == teacher.shape[:-1]
    teacher_rows = (
        student_rows if shared else _rows(theirs, teacher, "teacher", "student" if teacher_mask is None else "teacher")
    )
    if len(student_rows) != len(teacher_rows):
        raise ShapeError(
            f"the number of items that the mask keeps is {len(student_rows)} for the student, but {len(teacher_rows)} for the "
            "teacher. Both masks must keep the same number",
            field="logits_mask",
        )
    return HeadLogits(
        _keep(student, student_rows),
        _keep(teacher, teacher_rows),
        None if labels is None else keep(labels, student_rows, int(labels.is_floating_point())),
        ids=None if ids is None else keep(ids, student_rows, 0),
    )


class MultiTeacherLogits(NamedTuple):
    """One head's logits of the student and each teacher, with their labels, and the examples' ids if requested."""

    student: Logits
    teachers: tuple[Logits, ...]
    labels: Tensor | None
    ids: Tensor | None = None

    @property
    def first(self) -> HeadLogits:
        """The student's logits with the first teacher's."""
        return HeadLogits(self.student, self.teachers[0], self.labels, ids=self.ids)


def select_several(
    student: Logits,
    teachers: tuple[Logits, ...],
    labels: Tensor | None,
    *,
    student_mask: Tensor | None,
    teacher_masks: Sequence[Tensor | None],
    names: Names,
    ids: Tensor | None = None,
) -> MultiTeacherLogits:
    """Keep the items whose masks are 1, as ``select`` does; the student's mask applies to teachers without one.

    If only teachers have masks, they must all be equal, and the mask applies to all sides.

    Shapes: logits ``[*items, classes]``, masks ``[*items]`` to logits ``[n, classes]``.
    Raises: ``ShapeError``; ``OutputsError`` for a mask that holds a value other than 0 and 1, and if the teachers' masks
    differ and the student has none.
    """
    mine = _shared(teacher_masks) if student_mask is None else student_mask
    if mine is None:
        return MultiTeacherLogits(student, teachers, labels, ids)
    own = select(HeadLogits(student, student, labels, ids=ids), student_mask, mine)
    giver = "teacher" if student_mask is None else "student"
    found = []
    for place, (logits, mask) in enumerate(zip(teachers, teacher_masks, strict=True)):
        name = side(names, place)
        rows = _rows(mine if mask is None else mask, logits, name, giver if mask is None else name)
        if len(rows) != own.student.shape[0]:
            raise ShapeError(
                f"the number of items that the mask keeps is {own.student.shape[0]} for the student, but {len(rows)} for "
                f"{name}. All masks must keep the same number",
                field="logits_mask",
            )
        found.append(_keep(logits, rows))
    return MultiTeacherLogits(own.student, tuple(found), own.labels, own.ids)


def _shared(masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [mask for mask in masks if mask is not None]
    if any(mask.shape != given[0].shape or not mask.eq(given[0]).all() for mask in given[1:]):
        raise OutputsError(
            "the teachers' masks differ, and the student returned no mask to select its own items. Return logits_mask from "
            "the student's adaptor",
            field="logits_mask",
        )
    return given[0] if given else None


def check_pair(pair: HeadLogits, *, is_across: bool = False) -> None:
    """Raise ``ShapeError`` if the logits differ in shape, or the labels are not one per item.

    ``is_across`` allows different numbers of classes.
    """
    student, teacher, labels, *_ = pair
    is_free = is_across and len(teacher.shape) > 0 and student.shape[:-1] == teacher.shape[:-1]
    if (student.shape != teacher.shape and not is_free) or not student.shape:
        raise ShapeError(
            f"the student's {list(student.shape)} and the teacher's {list(teacher.shape)} must have the same shape, "
            "with classes last",
            field="logits",
        )
    if labels is not None:
        _check_labels(pair)


def is_ignored(mask: Tensor, logits: Logits) -> bool:
    """Return whether the mask has no effect, as in TextBrewer: a ``[batch, length]`` mask with ``[batch, classes]`` logits."""
    return mask.dim() == 2 and len(logits.shape) == 2 and mask.shape[0] == logits.shape[0]


def _check_labels(pair: HeadLogits) -> None:
    """Check that there is one class index per item, or one probability per item and class."""
    if pair.labels is None:
        return
    if pair.labels.is_floating_point():
        if pair.labels.shape != pair.student.shape:
            raise ShapeError(
                f"{list(pair.labels.shape)} do not match logits {list(pair.student.shape)}: floating-point labels are "
                "probabilities, one per class. Convert class indices with .long()",
                field="student.labels",
            )
    elif pair.labels.shape != pair.student.shape[:-1]:
        raise ShapeError(
            f"{list(pair.labels.shape)} do not match logits {list(pair.student.shape)}: one label per item",
            field="student.labels",
        )


def _rows(mask: Tensor | None, logits: Logits, side: str, giver: str) -> Tensor:
    """Return the indices of the selected items. ``giver`` is the side whose mask is applied here."""
    assert mask is not None
    if mask.shape != logits.shape[:-1]:
        raise ShapeError(
            f"a mask of shape {list(mask.shape)} does not match logits {list(logits.shape)}: "
            f"it must be {list(logits.shape[:-1])}, one value per item{extended_hint(mask)}",
            field=f"{side}.logits_mask",
        )
    return places_that_count(mask, field=f"{giver}.logits_mask")


def _keep(logits: Logits, rows: Tensor) -> Logits:
    return keep(logits, rows, 1) if isinstance(logits, Tensor) else logits.at(rows)


def shift(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Swap, item by item, the teacher's largest logit with the one at the label. The input is not modified.

    Items with a negative label stay unchanged.

    Shapes: logits ``[*items, classes]``, labels ``[*items]`` to ``[*items, classes]``.
    Raises: ``OutputsError`` for a label out of range (on a CPU; on an accelerator the device's own assertion stops the
    run).
    Source: TextBrewer's ``probability_shift``; Wen et al. 2019, arXiv:1911.07471.
    """
    _check_shift_labels(labels, teacher_logits.shape[-1])
    labels = labels.long().unsqueeze(-1)
    largest, top = teacher_logits.max(dim=-1, keepdim=True)
    label = torch.where(labels < 0, top, labels)  # swapping with itself changes nothing
    at_label = teacher_logits.gather(-1, label)
    return teacher_logits.scatter(-1, top, at_label).scatter_(-1, label, largest)


def _check_shift_labels(labels: Tensor, classes: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise OutputsError(
            f"must contain integer class indices for probability_shift, got {labels.dtype}", field="student.labels"
        )
    if labels.device.type == "cpu" and labels.numel() and (largest := int(labels.max())) >= classes:
        raise OutputsError(f"label {largest} does not exist: there are {classes} classes", field="student.labels")
