"""KL divergences from a mixture of the teacher's and student's distributions, which are always finite."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdplug import LossSum, closed_form, coarsens
from kdplug_logits.closed_form import skew_kl_rows, skew_reverse_kl_rows
from kdplug_logits.divergence import divergence, floored, log_mixture
from kdplug_logits.kl import relative_entropy

Skew = Annotated[float, Field(ge=0, lt=1)]


def skewed(first: Tensor, second: Tensor, skew: float) -> Tensor:
    """Return the terms of ``KL(first ‖ λ first + (1 − λ) second)``, of log-probabilities ``[*items, classes]``."""
    if skew == 0:
        return relative_entropy(first, second)
    first = floored(first)
    return first.exp() * (first - log_mixture(first, floored(second), skew))


def skew_kl_terms(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """Return the terms of ``KL(p ‖ λ p + (1 − λ) q)``, of log-probabilities ``[*items, classes]``."""
    return skewed(teacher, student, skew)


def skew_reverse_kl_terms(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """Return the terms of ``KL(q ‖ (1 − λ) p + λ q)``, of log-probabilities ``[*items, classes]``."""
    return skewed(student, teacher, skew)


@coarsens
@closed_form(skew_kl_rows)
def skew_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    skew: Skew = 0.1,
    t2: bool = True,
) -> LossSum:
    """Skew KL divergence ``T² KL(p ‖ λ p + (1 − λ) q)`` of softened teacher p, student q, in nats, mean over items.

    It is at most ``−T² log λ`` per item, even if the student rules out (``-inf``) a likely class of the teacher;
    gradients are bounded too.

    Settings: ``skew``, λ, the teacher's share of the mixture; ``t2`` multiplies by the squared temperature.
    Relations: ``kl`` at ``skew: 0``, and it approaches 0 as λ approaches 1.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898; λ = 0.1 as in jongwooko/distillm, distillm/losses.py.
    """
    terms = partial(skew_kl_terms, skew=skew)
    return divergence("skew_kl", student_logits, teacher_logits, temperature, terms, t2=t2)


@coarsens
@closed_form(skew_reverse_kl_rows)
def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    skew: Skew = 0.1,
    t2: bool = True,
) -> LossSum:
    """Skew reverse KL divergence ``T² KL(q ‖ (1 − λ) p + λ q)`` of softened teacher p, student q, in nats, mean over items.

    It is at most ``−T² log λ`` per item, even if the teacher rules out (``-inf``) a class to which the student gives
    probability; such a class repels the student with a bounded gradient, whereas ``reverse_kl`` excludes it.

    Settings: ``skew``, λ, the student's share of the mixture; ``t2`` multiplies by the squared temperature.
    Relations: ``reverse_kl`` at ``skew: 0``, and it approaches 0 as λ approaches 1.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898; λ = 0.1 as in jongwooko/distillm, distillm/losses.py.
    """
    terms = partial(skew_reverse_kl_terms, skew=skew)
    return divergence("skew_reverse_kl", student_logits, teacher_logits, temperature, terms, t2=t2, supported=skew == 0)
