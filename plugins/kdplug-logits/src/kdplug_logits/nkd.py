"""Cross-entropy at the label, plus a normalized cross-entropy over the other classes."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum
from kdplug_logits.divergence import over_temperature, read_temperature, times_squared
from kdplug_logits.label import Labelled, conditional, cross_entropy_per_item, labelled


def label_per_item(items: Labelled) -> Tensor:
    """Return ``−p_y log q_y`` at temperature 1, in nats, ``[*items]``."""
    probs = items.of_label(items.teacher.log_softmax(dim=-1)).exp()
    return -probs * torch.where(probs > 0, items.of_label(items.student.log_softmax(dim=-1)), 0.0)


def others_per_item(items: Labelled, temperature: Tensor | float) -> Tensor:
    """Return ``−Σ p̂ log q̂`` over the classes other than the label, softened, in nats, ``[*items]``.

    It is 0 if there are none.
    """
    theirs, some = conditional(items.others(over_temperature(items.teacher, temperature)))
    own, _ = conditional(items.others(over_temperature(items.student, temperature)))
    return torch.where(some, cross_entropy_per_item(own, theirs), 0.0)


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    labels: Tensor | None = None,
    *,
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5,
    t2: bool = True,
) -> LossSum:
    """Normalized distillation: cross-entropy at the label and over the other classes, in nats, mean over labelled items.

    ``−p_y log q_y − γ T² Σ_{v≠y} p̂_v log q̂_v``: p̂ and q̂ are softened and sum to 1 without the label; p_y and q_y
    are always at temperature 1. The minimum is not 0, and not at the teacher's distribution: the first part alone
    favours a higher label probability than the teacher's.

    An item without a label (negative) is excluded and not counted. A class that the teacher rules out (``-inf``) adds
    nothing.

    Settings: ``gamma``, the weight of the other classes; ``t2`` multiplies their part by the squared temperature.
    Relations: the second part is γ times the NCKD of ``dkd``, plus the teacher's entropy there.

    Shapes: logits ``[*items, classes]``; labels ``[*items]``; temperature a number, a one-element tensor, ``[*items]`` or
    ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive; ``OutputsError`` if
    there are no labels.
    Source: Yang et al. 2023, arXiv:2303.13005, whose formula excludes the label from the second sum; γ = 1.5 at temperature
    1 as in yzd-v/cls_KD, mmcls/models/dis_losses/nkd.py. Other versions of that file, and of
    mmcls/distillation/losses/nkd.py, build a mask that keeps the label there.
    """
    items = labelled("nkd", student_logits, teacher_logits, labels)
    temperature = read_temperature("nkd", temperature, student_logits)
    others = others_per_item(items, temperature) * gamma
    return items.summed(label_per_item(items) + (times_squared(others, temperature) if t2 else others))
