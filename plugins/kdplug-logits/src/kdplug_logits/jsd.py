"""Generalized Jensen–Shannon divergence between softened distributions."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdplug import LossSum, closed_form, coarsens
from kdplug_logits.closed_form import jsd_rows
from kdplug_logits.divergence import divergence, floored, log_mixture
from kdplug_logits.kl import kl_terms, reverse_kl_terms

Beta = Annotated[float, Field(ge=0, le=1)]


def jsd_terms(student: Tensor, teacher: Tensor, beta: float, *, normalize: bool = False) -> Tensor:
    """Return the terms of ``β KL(p‖m) + (1 − β) KL(q‖m)``, of log-probabilities ``[*items, classes]``."""
    if beta == 0:
        return kl_terms(student, teacher)
    if beta == 1:
        return reverse_kl_terms(student, teacher)
    student, teacher = floored(student), floored(teacher)
    mixture = log_mixture(teacher, student, beta)
    scale = 1 / min(beta, 1 - beta) if normalize else 1.0
    theirs = (teacher.exp() * (beta * scale)) * (teacher - mixture)
    return theirs + student.exp() * (student - mixture) * ((1 - beta) * scale)


@coarsens
@closed_form(jsd_rows)
def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    beta: Beta = 0.5,
    normalize: bool = False,
    t2: bool = True,
) -> LossSum:
    """Generalized Jensen–Shannon divergence of softened teacher p and student q, in nats, mean over items.

    ``T² [β KL(p‖m) + (1 − β) KL(q‖m)]`` with ``m = β p + (1 − β) q``: β weights the teacher. It is finite if only one
    side rules out a class (``-inf``), and symmetric at 0.5. For β between 0 and 1 it is at most ``T²`` times the
    entropy of (β, 1 − β), which is ``log 2`` at 0.5.

    At β = 0 and β = 1 it *is* ``kl`` and ``reverse_kl``, as in GKD, although the formula goes to 0 there: near these
    ends the loss is small. ``normalize`` divides it, and its bound, by ``min(β, 1 − β)``: this makes it continuous and
    puts all β on the same scale.

    Settings: ``beta``, the teacher's share of the mixture; ``normalize``, divide the value by the smaller share; ``t2``
    multiplies by the squared temperature.
    Relations: ``kl`` at ``beta: 0``, ``reverse_kl`` at ``beta: 1``. A sum of ``skew_kl`` and ``skew_reverse_kl``:
    ``β · skew_kl(skew=β) + (1 − β) · skew_reverse_kl(skew=1 − β)``.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649; TRL and Liger weight the same way.
    """
    terms = partial(jsd_terms, beta=beta, normalize=normalize)
    return divergence("jsd", student_logits, teacher_logits, temperature, terms, t2=t2, supported=beta == 1)
