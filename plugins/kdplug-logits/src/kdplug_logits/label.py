"""Shared parts of losses that use labels: items without a label are excluded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdplug import LossSum, ShapeError
from kdplug_logits.divergence import promoted
from kdplug_logits.shape import require_labels, require_logits, written


def cross_entropy_per_item(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``−Σ p log q`` of log-probabilities ``[*items, classes]``, in nats, ``[*items]``.

    A class of p = 0 adds nothing.
    """
    probs = teacher.exp()
    return -(probs * torch.where(probs > 0, student, 0.0)).sum(dim=-1)


class Labelled(NamedTuple):
    """Both sides' logits, set to 0 at items without a label, and the labels as class indices.

    Shapes: ``student`` and ``teacher`` ``[*items, classes]``; ``places`` ``[*items, 1]``, 0 without a label; ``counts``
    bool ``[*items]``.
    """

    student: Tensor
    teacher: Tensor
    places: Tensor
    counts: Tensor

    def of_label(self, values: Tensor) -> Tensor:
        """Return ``values`` ``[*items, classes]`` at the label, ``[*items]``."""
        return values.gather(-1, self.places).squeeze(-1)

    def others(self, logits: Tensor) -> Tensor:
        """Return ``logits`` with ``-inf`` at the label."""
        return logits.scatter(-1, self.places, -torch.inf)

    def summed(self, values: Tensor) -> LossSum:
        """Return the sum of ``values`` ``[*items]`` over the labelled items, and their number."""
        return LossSum(torch.where(self.counts, values, 0.0).sum(), self.counts.sum())


def labelled(owner: str, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> Labelled:
    """Return both sides in float32 or wider, the teacher detached.

    Raises: ``ShapeError`` if shapes differ or there are fewer than two classes; ``OutputsError`` if there are no labels.
    """
    require_logits(owner, student_logits, teacher_logits)
    labels = require_labels(owner, labels, student_logits)
    if student_logits.shape[-1] < 2:
        raise ShapeError(
            f"{owner}: needs at least two classes, got student_logits {written(student_logits)}. Use bce for one logit"
        )
    student, teacher = promoted(student_logits, teacher_logits)
    counts = labels >= 0
    without = ~counts.unsqueeze(-1)
    places = labels.to(torch.int64).clamp(min=0).unsqueeze(-1)
    return Labelled(student.masked_fill(without, 0.0), teacher.masked_fill(without, 0.0), places, counts)


def conditional(others: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities over the classes that are not ``-inf``, and whether there is one.

    If there is none they are uniform and get no gradient.

    Shapes: logits ``[*items, classes]`` to ``[*items, classes]`` and bool ``[*items]``.
    """
    some = (others > -torch.inf).any(dim=-1, keepdim=True)
    return others.masked_fill(~some, 0.0).log_softmax(dim=-1), some.squeeze(-1)
