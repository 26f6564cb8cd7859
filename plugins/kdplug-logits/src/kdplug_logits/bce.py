"""Binary cross-entropy, class by class, for outputs that do not exclude each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdplug import LossSum, takes_numbers
from kdplug_logits.divergence import tempered, total


def bce_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``−[σ(t) log σ(s) + σ(−t) log σ(−s)]`` of logits ``[*items, classes]``, class by class."""
    yes, no = teacher.sigmoid(), (-teacher).sigmoid()
    agreed = yes * torch.where(yes > 0, logsigmoid(student), 0.0)
    denied = no * torch.where(no > 0, logsigmoid(-student), 0.0)
    return -(agreed + denied)


@takes_numbers
def bce(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0, *, t2: bool = True
) -> LossSum:
    """Binary cross-entropy ``T² Σ_c BCE(σ(z_s / T), σ(z_t / T))``, in nats, summed over classes, mean over items.

    For multi-label classification: each class is an independent yes or no. Its minimum is the teacher's entropy, not 0.
    A class that the teacher rules out (``-inf``) is a certain no; one that only the student rules out makes the value
    infinite.

    Settings: ``t2`` multiplies by the squared temperature, so that the gradient scale does not depend on it.
    Relations: ``ce`` of kdplug-presets on the two logits (z, 0) of every class.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Hinton et al. 2015, arXiv:1503.02531, for two classes; summed as in Yang et al. 2023, arXiv:2308.06453.
    """
    student, teacher, temperature = tempered("bce", student_logits, teacher_logits, temperature)
    terms = bce_terms(student, teacher)
    return LossSum(total(terms, temperature, t2=t2), student.shape[:-1].numel())
