"""Losses on whole sequences of a language model: DistiLLM-2 by the origin of a text, MiniLLM's policy gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kdplug import LossSum, OutputsError, ShapeError, whole_sequences
from kdplug_papers.checks import check_setting
from kdplug_papers.tokens import counted, softened

_LEAST = -87.0
"""About the logarithm of the smallest float32: the teacher's log-probability of a token that it rules out."""


@whole_sequences
def distillm2(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_extras: Mapping[str, Tensor],
    mask: Tensor,
    *,
    skew: float = 0.1,
    student_weight: float = 0.5,
) -> LossSum:
    """DistiLLM-2: skew KL divergence on the teacher's texts, skew reverse KL on the student's, in nats.

    ``KL(p‖λp + (1 − λ)q)`` for a text that the teacher wrote and ``KL(q‖(1 − λ)p + λq)`` for one of the student, mean over
    the tokens of a text, then over texts. The student's adaptor returns who wrote each text, and the term names it:
    ``{'extras': {'from_student': …}}`` and ``extras: [from_student]``.

    Settings: ``skew``, λ, here constant (the authors may adapt it to each text); ``student_weight``, β, weights texts of
    the teacher by 2 (1 − β) and those of the student by 2 β: ½ is the plain mean.
    Shapes: logits ``[batch, length, classes]``; mask ``[batch, length]``; ``from_student`` ``[batch]``, bool or 0 and 1.
    Raises: ``OutputsError`` without ``from_student``; ``ShapeError``; ``SettingError``.
    Source: Ko et al. 2025, arXiv:2503.07067, equation 4; λ = 0.1. The authors' code also detaches the student in the
    mixture of the reverse divergence.
    """
    check_setting("skew", skew, above=0, below=1)
    check_setting("student_weight", student_weight, above=0, below=1)
    written = _extra("distillm2", "from_student", student_extras, student_logits.shape[:1]).bool()
    log_q, log_p = softened("distillm2", student_logits, teacher_logits, 1.0)
    own, other = (side.clamp(min=torch.finfo(side.dtype).min / 8) for side in (log_q, log_p))
    forward, reverse = _skewed(other, own, skew), _skewed(own, other, skew)
    tokens = torch.where(written[:, None], 2 * student_weight * reverse, 2 * (1 - student_weight) * forward)
    mask = counted("distillm2", mask, log_q)
    lengths = mask.sum(dim=1)
    texts = tokens.masked_fill(~mask, 0.0).sum(dim=1) / lengths.clamp(min=1)
    return LossSum(texts.sum(), (lengths > 0).sum())


def _extra(owner: str, name: str, extras: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Return an extra of bool or integers with this shape.

    Raises: ``OutputsError`` if the term does not name it, or it has another type; ``ShapeError``.
    """
    if name not in extras:
        raise OutputsError(f"{owner} needs extras: [{name}] in its term, got {', '.join(extras) or 'nothing'}")
    found = extras[name]
    if found.is_floating_point():
        raise OutputsError(f"{owner}: {name} must be bool or integers, got {found.dtype}")
    if found.shape != shape:
        raise ShapeError(f"{owner}: {name} must be {list(shape)}, got {list(found.shape)}")
    return found


def _skewed(first: Tensor, second: Tensor, skew: float) -> Tensor:
    """Return ``KL(first‖skew · first + (1 − skew) · second)`` of finite log-probabilities, summed over the last axis."""
    mixture = torch.logaddexp(first + math.log(skew), second + math.log1p(-skew))
    return (first.exp() * (first - mixture)).sum(-1)


@whole_sequences
def minillm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_extras: Mapping[str, Tensor],
    mask: Tensor,
    *,
    normalize_length: bool = True,
) -> LossSum:
    """MiniLLM: policy gradient of the reverse KL divergence of whole texts that the student wrote, mean over tokens.

    The value is the mean ``KL(q_t‖p_t)`` of the tokens, in nats. Its gradient is that of the divergence of whole texts:
    to the gradient of ``KL(q_t‖p_t)`` (single-step decomposition) it adds that of ``−R ln q(y_t)``, where y are the
    sampled tokens, and R is the mean of ``ln p(y) − ln q(y)`` over the later ones, without gradient. This holds only for
    tokens that the student just sampled, so the loss does not read labels: the student's adaptor returns the tokens
    ``{'extras': {'sampled': …}}``, −100 for any other token, which does not count, and the term has ``extras: [sampled]``.

    A token that the teacher rules out (``-inf``) has a log-probability of −87.

    Settings: ``normalize_length: false`` takes the sum over the later tokens instead of the mean.
    Shapes: logits ``[batch, length, classes]``; ``sampled``, integers, and mask ``[batch, length]``.
    Raises: ``OutputsError`` without ``sampled``; ``ShapeError``.
    Source: Gu et al. 2024, arXiv:2306.08543, equations 3 and 5, for texts sampled from the student alone (w = 1). The
    authors' code, microsoft/LMOps, includes token t in R, normalizes R over the batch and clips ratios as PPO does.
    """
    log_q, log_p = softened("minillm", student_logits, teacher_logits, 1.0)
    sampled = _extra("minillm", "sampled", student_extras, student_logits.shape[:2])
    mask = counted("minillm", mask, log_q) & (sampled >= 0)
    log_p = log_p.clamp(min=_LEAST)
    divergence = (log_q.exp() * (log_q - log_p).masked_fill(log_q == float("-inf"), 0.0)).sum(-1)
    chosen = sampled.clamp(min=0).unsqueeze(-1)
    own, other = (side.gather(-1, chosen).squeeze(-1).masked_fill(~mask, 0.0) for side in (log_q, log_p))
    reward = (other - own).detach()
    later, following = _later(reward), _later(mask.to(reward.dtype))
    if normalize_length:
        later = later / following.clamp(min=1)
    policy = -later * own
    return LossSum((divergence + (policy - policy.detach())).masked_fill(~mask, 0.0).sum(), mask.sum())


def _later(values: Tensor) -> Tensor:
    """Return for each place the sum of the values at all later places, ``[batch, length]``."""
    return values.flip(1).cumsum(1).flip(1) - values
