"""MiniLMv2: relations between the queries, the keys and the values of one layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdplug import LossSum
from kdplug_papers.checks import check_setting, listed
from kdplug_papers.tokens import check_count, check_tokens, counted, in_heads


def minilmv2(
    student_features: Tensor | tuple[Tensor, ...],
    teacher_features: Tensor | tuple[Tensor, ...],
    mask: Tensor | None = None,
    *,
    relation_heads: int = 48,
) -> LossSum:
    """MiniLMv2: KL divergence of self-attention relations, in nats, mean over examples.

    Each layer of the list is the output of a query, key or value projection, so it works with every attention kernel:
    ``layer_S: [encoder.layer.5.attention.self.query, encoder.layer.5.attention.self.key, …value]``. The width is split
    into ``relation_heads`` heads x of width d, whatever the number of attention heads, and the rows of
    ``softmax(x xᵀ / √d)`` over the tokens that count are compared: ``KL(teacher‖student)``, mean over the layers of the
    list (weights of ⅓ for queries, keys and values), heads, tokens of an example, and examples. Padding is cut. A model
    with one projection for all three cannot be read this way.

    Settings: ``relation_heads``, A_r: 48 for a teacher of base size, 64 for a large one; it divides both widths.
    Shapes: features ``[batch, length, width]``, whose widths may differ between the sides; mask ``[batch, length]``.
    Raises: ``ShapeError``; ``OutputsError`` for lists of different lengths; ``SettingError``.
    Source: Wang et al. 2021, arXiv:2012.15828, equations 5 to 8; length per example as in bloomberg/minilmv2.bb,
    minilmv2/minilmv2.py.
    """
    check_setting("relation_heads", relation_heads, least=1)
    student, teacher = listed(student_features), listed(teacher_features)
    check_count("minilmv2", student, teacher)
    check_tokens("minilmv2", *student, *teacher)
    counts = counted("minilmv2", mask, student[0])
    divergence = torch.zeros_like(counts, dtype=student[0].dtype)
    for own, other in zip(student, teacher, strict=True):
        log_q, log_p = _relations(own, counts, relation_heads), _relations(other.detach(), counts, relation_heads)
        divergence = divergence + (log_p.exp() * (log_p - log_q)).sum(dim=(1, 3))
    lengths = counts.sum(dim=1)
    examples = divergence.masked_fill(~counts, 0.0).sum(dim=1) / (lengths.clamp(min=1) * relation_heads * len(student))
    return LossSum(examples.sum(), (lengths > 0).sum())


def _relations(feature: Tensor, counts: Tensor, heads: int) -> Tensor:
    """Return log-probabilities ``[batch, heads, length, length]``; tokens that do not count get a probability of 0."""
    parts = in_heads("minilmv2", feature.masked_fill(~counts.unsqueeze(-1), 0.0), heads)
    scores = parts @ parts.transpose(-1, -2) / math.sqrt(parts.shape[-1])
    return scores.masked_fill(~counts[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)
