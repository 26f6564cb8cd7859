"""KL divergence split into the label's part and that of the other classes."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum
from kdplug_logits.divergence import log_total, over_temperature, read_temperature, times_squared
from kdplug_logits.kl import relative_entropy
from kdplug_logits.label import Labelled, conditional, labelled
from kdplug_logits.shape import require_three_classes

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def target_per_item(items: Labelled, student: Tensor, teacher: Tensor) -> Tensor:
    """TCKD, the KL divergence of (the label, anything else), of log-probabilities ``[*items, classes]``, ``[*items]``."""
    sides = (torch.stack([items.of_label(side), log_total(items.others(side))], dim=-1) for side in (teacher, student))
    return relative_entropy(*sides).sum(dim=-1)


def others_per_item(items: Labelled, student: Tensor, teacher: Tensor) -> Tensor:
    """NCKD, the KL divergence over the classes that are not the label, of logits ``[*items, classes]``, ``[*items]``.

    It is 0 if the teacher allows no such class.
    """
    theirs, some = conditional(items.others(teacher))
    own, _ = conditional(items.others(student))
    return torch.where(some, relative_entropy(theirs, own).sum(dim=-1), 0.0)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    labels: Tensor | None = None,
    *,
    alpha: Factor = 1.0,
    beta: Factor = 8.0,
    t2: bool = True,
) -> LossSum:
    """Decoupled distillation ``T² (α TCKD + β NCKD)`` of softened teacher and student, in nats, mean over labelled items.

    TCKD is the KL divergence of the label against all other classes combined, NCKD that among the other classes, given
    that the class is one of them. ``kl`` weights NCKD by the teacher's probability of the others, which suppresses NCKD
    if the teacher is confident.

    An item without a label (negative) is excluded and not counted. A class that the teacher rules out (``-inf``) adds
    nothing.

    Settings: ``alpha`` and ``beta``, the two weights; ``t2`` multiplies by the squared temperature. The authors choose β
    from 0.5 to 8 by the pair of models, and increase the weight of the whole loss at the start: on CIFAR-100 at
    temperature 4 over the first 20 of 240 epochs, on ImageNet at temperature 1 over the first of 100. ``linear_warmup``
    with ``share: 0.0833`` or ``share: 0.01`` does that.
    Relations: ``kl`` if α is 1 and β the teacher's probability of all other classes, item by item.

    Shapes: logits ``[*items, classes]``; labels ``[*items]``; temperature a number, a one-element tensor, ``[*items]`` or
    ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ, or there are fewer than three classes at ``alpha: 0``; ``SettingError`` if
    the temperature is not positive; ``OutputsError`` if there are no labels.
    Source: Zhao et al. 2022, arXiv:2203.08679; as in megvii-research/mdistiller, mdistiller/distillers/DKD.py,
    whose defaults are α = 1, β = 8.
    """
    items = labelled("dkd", student_logits, teacher_logits, labels)
    if not alpha:
        require_three_classes(
            "dkd",
            student_logits,
            "with two classes only one remains besides the label, so NCKD is 0. Set alpha above 0",
        )
    temperature = read_temperature("dkd", temperature, student_logits)
    student, teacher = over_temperature(items.student, temperature), over_temperature(items.teacher, temperature)
    target = target_per_item(items, student.log_softmax(dim=-1), teacher.log_softmax(dim=-1))
    values = target * alpha + others_per_item(items, student, teacher) * beta
    return items.summed(times_squared(values, temperature) if t2 else values)
