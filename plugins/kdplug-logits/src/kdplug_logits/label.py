"""Losses that know the right class: items without a label are left out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdplug import LossSum, ShapeError
from kdplug_logits.divergence import promoted
from kdplug_logits.shape import require_labels, require_logits, written


def cross_entropy_per_item(student: Tensor, teacher: Tensor) -> Tensor:
    """``−Σ p log q`` of log-probabilities ``[*items, classes]``, in nats, ``[*items]``; a class of p = 0 adds nothing."""
    probs = teacher.exp()
    return -(probs * torch.where(probs > 0, student, 0.0)).sum(dim=-1)


class Labelled(NamedTuple):
    """Logits of both sides with 0 at the items that have no label, and where the labels are.

    Shapes: ``student`` and ``teacher`` ``[*items, classes]``; ``places`` ``[*items, 1]``, 0 where there is none; ``counts``
    bool ``[*items]``.
    """

    student: Tensor
    teacher: Tensor
    places: Tensor
    counts: Tensor

    def of_label(self, values: Tensor) -> Tensor:
        """``values`` ``[*items, classes]`` at the label, ``[*items]``."""
        return values.gather(-1, self.places).squeeze(-1)

    def others(self, logits: Tensor) -> Tensor:
        """``logits`` with ``-inf`` at the label."""
        return logits.scatter(-1, self.places, -torch.inf)

    def summed(self, values: Tensor) -> LossSum:
        """The sum of ``values`` ``[*items]`` over the items that have a label, and how many these are."""
        return LossSum(torch.where(self.counts, values, 0.0).sum(), self.counts.sum())


def labelled(owner: str, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Labelled:
    """Both sides in float32 at least, the teacher cut from the graph.

    Raises: ``ShapeError`` where shapes differ or there are fewer than two classes; ``OutputsError`` where there are no labels.
    """
    require_logits(owner, student_logits, teacher_logits)
    labels = require_labels(owner, labels, student_logits)
    if student_logits.shape[-1] < 2:
        raise ShapeError(f"{owner}: needs two classes at least, got student_logits {written(student_logits)}")
    student, teacher = promoted(student_logits, teacher_logits)
    counts = labels >= 0
    without = ~counts.unsqueeze(-1)
    places = labels.to(torch.int64).clamp(min=0).unsqueeze(-1)
    return Labelled(student.masked_fill(without, 0.0), teacher.masked_fill(without, 0.0), places, counts)


def conditional(others: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the classes that are not ``-inf``, and where there is one.

    Where there is none they are uniform and get no gradient.

    Shapes: logits ``[*items, classes]`` to ``[*items, classes]`` and bool ``[*items]``.
    """
    some = (others > -torch.inf).any(dim=-1, keepdim=True)
    return others.masked_fill(~some, 0.0).log_softmax(dim=-1), some.squeeze(-1)
