"""Squared error of outputs that are numbers rather than class scores."""

from __future__ import annotations

from torch import Tensor

from kdplug import LossSum, facts, takes_numbers
from kdplug_logits.divergence import promoted
from kdplug_logits.shape import require_logits


@facts(takes_scores=True)
@takes_numbers
def regression(student_logits: Tensor, teacher_logits: Tensor) -> LossSum:
    """Squared error between student and teacher outputs, summed over the outputs of an item, mean over items.

    For models that predict numbers (a similarity, a rating): no softening and no temperature.

    Relations: ``mse`` of kdplug-presets at temperature 1 times the number of outputs.

    Shapes: outputs ``[*items, outputs]``; a single output is allowed.
    Raises: ``ShapeError`` if shapes differ.
    Source: definition; Bucilă et al. 2006, doi:10.1145/1150402.1150464, and Ba and Caruana 2014, arXiv:1312.6184.
    """
    require_logits("regression", student_logits, teacher_logits)
    student, teacher = promoted(student_logits, teacher_logits)
    return LossSum((student - teacher).square().sum(), student.shape[:-1].numel())
