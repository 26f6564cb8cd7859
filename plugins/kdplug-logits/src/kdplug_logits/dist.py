"""Correlation of softened distributions: of each item over the classes, and of each class over the items."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdplug import LossSum
from kdplug_logits.divergence import tempered, times_squared
from kdplug_logits.shape import require_three_classes

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def pearson(first: Tensor, second: Tensor, axis: int, eps: float) -> Tensor:
    """Return Pearson's correlation along ``axis``, within [-1, 1]; 0 if either side hardly varies.

    The product of the two lengths is at least ``eps``.
    """
    first, second = first - first.mean(dim=axis, keepdim=True), second - second.mean(dim=axis, keepdim=True)
    lengths = first.square().sum(dim=axis) * second.square().sum(dim=axis)
    return (first * second).sum(dim=axis) / lengths.clamp(min=eps**2).sqrt()


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    beta: Factor = 1.0,
    gamma: Factor = 1.0,
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8,
    t2: bool = True,
) -> LossSum | Tensor:
    """One minus the correlation of softened probabilities, over the classes and over the batch, mean over items.

    ``T² [β (1 − mean_b ρ(q_b, p_b)) + γ (1 − mean_c ρ(q_:c, p_:c))]`` with Pearson's ρ: within each item over the
    classes, and within each class over the items. Shifting or scaling the probabilities changes nothing.

    **The second part compares the items of one call**, so it is not a sum over items, and the loss returns a scalar:
    the mean of one call. Correlations are computed within each micro-batch of each process, and these get equal weight
    regardless of their number of items. All logits are computed at once, also from ``FactoredLogits``. At ``gamma: 0``
    only the first part remains, a sum over items that may be split anywhere. It needs three classes: two classes always
    have a correlation of 1 or -1, whatever the student predicts. A call with one item has no correlation over items,
    and adds the constant γ without a gradient. So does a class to which one side gives the same probability everywhere,
    such as one it rules out (``-inf``).

    Settings: ``beta`` and ``gamma``, the weights of the two parts; ``eps``, the lower bound of the product of lengths
    that ρ is divided by; ``t2`` multiplies by the squared temperature (the second part by its mean over items).
    Relations: none to the divergences; it is 0 for many distributions of the student.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ, or there are fewer than three classes at ``gamma: 0``; ``SettingError`` if
    the temperature is not positive.
    Source: Huang et al. 2022, arXiv:2205.10536; β = γ = 1 and eps as in hunto/DIST_KD,
    segmentation/losses/dist_kd.py, which adds eps to the product of the lengths and has no T².
    """
    student, teacher, temperature = tempered("dist", student_logits, teacher_logits, temperature)
    if not gamma:
        require_three_classes(
            "dist", student, "the correlation of two probabilities is always 1 or -1. Set gamma above 0, or use kl"
        )
    student, teacher = student.softmax(dim=-1), teacher.softmax(dim=-1)
    values = (1 - pearson(student, teacher, -1, eps)) * beta
    if gamma:
        classes = student.shape[-1]
        over_items = pearson(student.reshape(-1, classes), teacher.reshape(-1, classes), 0, eps)
        values = values + (1 - over_items).mean() * gamma
    found = LossSum((times_squared(values, temperature) if t2 else values).sum(), values.numel())
    return found.value if gamma else found
