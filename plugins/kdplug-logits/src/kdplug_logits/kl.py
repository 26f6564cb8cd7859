"""Kullback–Leibler divergence between softened distributions, in either direction."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug import LossSum, closed_form, coarsens
from kdplug_logits.closed_form import kl_rows, reverse_kl_rows
from kdplug_logits.divergence import divergence


def relative_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Return ``e^first (first − second)``, in nats.

    Its sum over classes is the information lost by using ``second`` for ``first``.

    A class of probability 0 in ``first`` adds nothing, whatever ``second`` gives it. A class of probability 0 only in
    ``second`` makes the value infinite, with a finite gradient.

    Shapes: log-probabilities ``[*items, classes]`` to ``[*items, classes]``.
    """
    probs = first.exp()
    return probs * torch.where(probs > 0, first - second, 0.0)


def kl_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the terms of ``KL(teacher‖student)``, of log-probabilities ``[*items, classes]``."""
    return relative_entropy(teacher, student)


def reverse_kl_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the terms of ``KL(student‖teacher)``, of log-probabilities ``[*items, classes]``."""
    return relative_entropy(student, teacher)


@coarsens
@closed_form(kl_rows)
def kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0, *, t2: bool = True
) -> LossSum:
    """Forward KL divergence ``T² KL(p‖q)`` of the softened student q from the softened teacher p, in nats, mean over items.

    Mode-covering: the student must give probability wherever the teacher does. A class that the teacher rules out
    (``-inf``) adds nothing; one that only the student rules out makes the value infinite, with a finite gradient.

    Settings: ``t2`` multiplies by the squared temperature, so that the gradient scale does not depend on it.
    Relations: ``ce`` of kdplug-presets minus the teacher's entropy; ``jsd`` at ``beta: 0``, ``skew_kl`` at ``skew: 0``,
    ``alpha_beta`` at (1, 0), ``topk`` with ``k`` at least the number of classes.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    return divergence("kl", student_logits, teacher_logits, temperature, kl_terms, t2=t2)


@coarsens
@closed_form(reverse_kl_rows)
def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0, *, t2: bool = True
) -> LossSum:
    """Reverse KL divergence ``T² KL(q‖p)`` of the softened teacher p from the softened student q, in nats, mean over items.

    Mode-seeking: the student must give no probability where the teacher gives little. That would be infinite at a class
    that the teacher rules out (``-inf``), so such a class is removed from the student as well: it adds nothing and gets
    no gradient.

    Settings: ``t2`` multiplies by the squared temperature, so that the gradient scale does not depend on it.
    Relations: ``jsd`` at ``beta: 1``, ``skew_reverse_kl`` at ``skew: 0``, ``alpha_beta`` at (0, 1).

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, here per token on given text.
    """
    return divergence(
        "reverse_kl", student_logits, teacher_logits, temperature, reverse_kl_terms, t2=t2, supported=True
    )
