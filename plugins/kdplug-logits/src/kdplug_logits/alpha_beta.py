"""The alpha-beta divergence between softened distributions."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from kdplug import LossSum, SettingError, coarsens
from kdplug_logits.divergence import divergence
from kdplug_logits.kl import relative_entropy

_LEAST = 0.01
"""The formula divides a difference by alpha · beta: below this, float32 loses all precision."""


def _zero_or_large_enough(value: float) -> float:
    if 0 < value < _LEAST:
        raise ValueError(f"must be 0 or at least {_LEAST}")
    return value


Power = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_zero_or_large_enough)]


def _limit(first: Tensor, second: Tensor, power: float) -> Tensor:
    """Return ``[f log(f / s) − f + s] / power²`` with ``f = e^(power · first)`` and ``s = e^(power · second)``."""
    first, second = first * power, second * power
    return (relative_entropy(first, second) + second.exp() - first.exp()) / power**2


def alpha_beta_terms(student: Tensor, teacher: Tensor, alpha: float, beta: float) -> Tensor:
    """Return the terms of the divergence of log-probabilities ``[*items, classes]``; one of alpha and beta may be 0."""
    if beta == 0:
        return _limit(teacher, student, alpha)
    if alpha == 0:
        return _limit(student, teacher, beta)
    both = alpha + beta
    theirs, own = (teacher * both).exp() / (both * beta), (student * both).exp() / (both * alpha)
    return theirs + own - (teacher * alpha + student * beta).exp() / (alpha * beta)


@coarsens
def alpha_beta(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    alpha: Power = 0.2,
    beta: Power = 0.7,
    t2: bool = True,
) -> LossSum:
    """Alpha-beta divergence of softened teacher p and student q, mean over items.

    ``−T² / (αβ) Σ [p^α q^β − α/(α+β) p^(α+β) − β/(α+β) q^(α+β)]``, or its limit if α or β is 0. A larger α weights
    classes that the teacher rates above the student, a larger β those of which the student itself is confident.

    If both are above 0 it is finite even if either side rules out a class (``-inf``). At α = 0 a class that the teacher
    rules out is removed from the student too, as in ``reverse_kl``.

    Settings: ``alpha`` and ``beta``, each 0 or at least 0.01, and not both 0; ``t2`` multiplies by the squared
    temperature.
    Relations: ``kl`` at (1, 0); ``reverse_kl`` at (0, 1); four times the squared Hellinger distance ``½ Σ (√p − √q)²`` at
    (½, ½); half the squared distance of probabilities at (1, 1).

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive, or both powers are 0.
    Source: Wang et al. 2025 (ABKD), arXiv:2505.04560; (0.2, 0.7) as its repository uses for GPT-2. The limits are those
    of Cichocki et al. 2011, doi:10.3390/e13010134 (the repository's at α = 0 or β = 0 lack one power of the other).
    """
    if alpha == beta == 0:
        raise SettingError("alpha_beta: alpha and beta must not both be 0", field="beta")
    terms = partial(alpha_beta_terms, alpha=alpha, beta=beta)
    return divergence("alpha_beta", student_logits, teacher_logits, temperature, terms, t2=t2, supported=alpha == 0)
