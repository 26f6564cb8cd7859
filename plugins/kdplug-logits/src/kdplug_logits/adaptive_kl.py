"""Forward and reverse KL divergence, mixed item by item."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum, coarsens
from kdplug_logits.divergence import divergence, tempered, within_support
from kdplug_logits.kl import kl_terms, reverse_kl_terms


def tail_share(student: Tensor, teacher: Tensor, mass: float) -> Tensor:
    """Return the share of ``Σ |p − q|`` outside the head, within [0, 1]; one half if there is no difference.

    The head contains the teacher's most likely class, and the next ones while their probabilities sum to at most
    ``mass``.

    Shapes: log-probabilities ``[*items, classes]`` to ``[*items]``.
    """
    theirs, order = teacher.exp().sort(dim=-1, descending=True)
    gap = (theirs - student.exp().gather(-1, order)).abs()
    in_tail = theirs.cumsum(dim=-1) > mass
    in_tail[..., 0] = False
    total, tail = gap.sum(dim=-1), torch.where(in_tail, gap, 0.0).sum(dim=-1)
    return torch.where(total > 0, tail / total.masked_fill(total == 0, 1.0), 0.5)


def adaptive_kl_terms(student: Tensor, teacher: Tensor, mass: float, tail: Tensor | None = None) -> Tensor:
    """Return the terms of ``w KL(p‖q) + (1 − w) KL(q‖p)``, of log-probabilities ``[*items, classes]``.

    ``tail`` is ``1 − w``, ``[*items]``; without it, it is computed without gradient.
    """
    tail = (tail_share(student.detach(), teacher.detach(), mass) if tail is None else tail).unsqueeze(-1)
    forward = torch.where(tail < 1, kl_terms(student, teacher) * (1 - tail), 0.0)
    return forward + torch.where(tail > 0, reverse_kl_terms(student, teacher) * tail, 0.0)


@coarsens
def adaptive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    mass: Annotated[float, Field(ge=0, le=1)] = 0.5,
    t2: bool = True,
) -> LossSum:
    """Adaptive KL divergence ``T² [w KL(p‖q) + (1 − w) KL(q‖p)]`` of softened teacher p, student q, in nats, mean over items.

    ``w`` is the share of ``Σ |p − q|`` at the teacher's most likely classes, its head: forward KL if the head differs,
    reverse KL if the tail does. It is one number per item, without gradient for the student. Below ``mass: 1`` a class
    that the teacher rules out (``-inf``) is removed from the student too, as in ``reverse_kl``.

    Settings: ``mass``, μ, the teacher's probability that the head may contain (its first class always belongs to it);
    ``t2`` multiplies by the squared temperature.
    Relations: between ``kl`` and ``reverse_kl`` of each item; ``kl`` at ``mass: 1``, if every class belongs to the head.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Wu et al. 2024 (AKL), arXiv:2404.02657; head, constant ``w`` and μ = 0.5 as in wutaiqiang/LLM_KD_AKL,
    AKL.py.
    """
    if mass == 1:
        return divergence("adaptive_kl", student_logits, teacher_logits, temperature, kl_terms, t2=t2)
    tail: Tensor | None = None
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        own, theirs, _ = tempered("adaptive_kl", student_logits.detach(), teacher_logits, temperature)
        tail = tail_share(within_support(own, theirs).log_softmax(dim=-1), theirs.log_softmax(dim=-1), mass)
    terms = partial(adaptive_kl_terms, mass=mass, tail=tail)
    return divergence("adaptive_kl", student_logits, teacher_logits, temperature, terms, t2=t2, supported=True)
