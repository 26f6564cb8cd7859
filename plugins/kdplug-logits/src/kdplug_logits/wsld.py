"""Cross-entropy with the teacher, with a larger weight for items whose label the student predicts worse than the teacher."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum
from kdplug_logits.divergence import floor_of, over_temperature, read_temperature, times_squared
from kdplug_logits.label import Labelled, cross_entropy_per_item, labelled


@torch.no_grad()
def soft_weight(items: Labelled, eps: float) -> Tensor:
    """Return ``1 − exp(−CE_student / CE_teacher)`` at the label and temperature 1, within [0, 1], ``[*items]``."""
    most = -floor_of(items.student.dtype)
    own, theirs = (
        -items.of_label(side.log_softmax(dim=-1)).clamp(min=-most) for side in (items.student, items.teacher)
    )
    return -torch.expm1(-own / (theirs + eps))


def wsld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    labels: Tensor | None = None,
    *,
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-7,
    t2: bool = True,
) -> LossSum:
    """Weighted soft labels: cross-entropy of softened student under teacher, weighted by item, in nats, mean over items.

    ``T² w · (−Σ p log q)`` with ``w = 1 − exp(−CE(q, y) / CE(p, y))`` at temperature 1: an item on which the student is
    as good as the teacher has a weight of at most ``1 − 1/e``, and less if the student is better. No gradient flows
    through w. Its minimum for fixed w is the teacher's entropy, not 0.

    An item without a label (negative) is excluded and not counted. A class that the teacher rules out (``-inf``) adds
    nothing.

    Settings: ``eps`` is added to the teacher's cross-entropy, to avoid a division by 0; ``t2`` multiplies by the squared
    temperature. The authors add it with a weight of 2.5, at temperature 2, to the plain cross-entropy.
    Relations: ``ce`` of kdplug-presets with ``t2: true`` as w goes to 1.

    Shapes: logits ``[*items, classes]``; labels ``[*items]``; temperature a number, a one-element tensor, ``[*items]`` or
    ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive; ``OutputsError`` if
    there are no labels.
    Source: Zhou et al. 2021, arXiv:2102.00650; eps as in bellymonster/Weighted-Soft-Label-Distillation,
    knowledge_distiller.py.
    """
    items = labelled("wsld", student_logits, teacher_logits, labels)
    temperature = read_temperature("wsld", temperature, student_logits)
    student, teacher = over_temperature(items.student, temperature), over_temperature(items.teacher, temperature)
    weight = soft_weight(items, eps)
    soft = cross_entropy_per_item(student.log_softmax(dim=-1), teacher.log_softmax(dim=-1))
    values = torch.where(weight == 0, 0.0, weight * soft)
    return items.summed(times_squared(values, temperature) if t2 else values)
