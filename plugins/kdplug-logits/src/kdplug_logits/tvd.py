"""Total variation distance between softened distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug import LossSum, closed_form, coarsens
from kdplug_logits.closed_form import from_slope_, scaled, temper_
from kdplug_logits.divergence import divergence


def tvd_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = True) -> Tensor:
    """Evaluate the closed form of ``tvd``: the derivative with respect to ``q`` is ``½ sign(q − p)``."""
    temper_(temperature, student, teacher)
    own = student.softmax(dim=-1)
    gap = torch.sub(own, teacher.softmax(dim=-1), out=teacher)
    values: Tensor = torch.linalg.vector_norm(gap, ord=1, dim=-1) / 2
    from_slope_(student, own, gap.sign_())
    return scaled(values, student, temperature, t2=t2, factor=0.5)


def tvd_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``½ |p − q|`` of log-probabilities ``[*items, classes]``, class by class."""
    return (student.exp() - teacher.exp()).abs() / 2


@coarsens
@closed_form(tvd_rows)
def tvd(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0, *, t2: bool = True
) -> LossSum:
    """Total variation distance ``T² ½ Σ |p − q|`` of softened teacher p and student q, mean over items.

    It is symmetric, finite even if either side rules out a class (``-inf``), and without ``t2`` within [0, 1]. A
    confidently wrong student gets almost no gradient from it.

    Settings: ``t2`` multiplies by the squared temperature.
    Relations: half of ``uld`` if both sides rank the classes equally; at most ``√(kl / 2)`` (Pinsker) at temperature 1.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Wen et al. 2023 (f-divergence minimization), arXiv:2307.15190, here per token; as in
    jongwooko/distillm, distillm/losses.py.
    """
    return divergence("tvd", student_logits, teacher_logits, temperature, tvd_terms, t2=t2)
