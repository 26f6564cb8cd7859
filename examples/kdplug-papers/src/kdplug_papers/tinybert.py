"""TinyBERT: attention scores, hidden states through one shared layer, and predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdplug import LossSum, OutputsError, ShapeError
from kdplug_papers.checks import check_equal, check_setting, listed
from kdplug_papers.tokens import check_count, check_tokens, counted, in_heads, softened


def tinybert_attention(
    student_features: Tensor | tuple[Tensor, ...], teacher_features: Tensor | tuple[Tensor, ...]
) -> LossSum:
    """TinyBERT: squared difference of attention scores before the softmax, mean over heads and positions, sum over layers.

    Scores of −100 or less, as an additive mask makes them, become 0 on each side. Padding counts in the mean, as in the
    authors' code. For models that do not return scores use ``tinybert_query_key``.

    Shapes: scores ``[batch, heads, length, length]``, equal in all layers.
    Raises: ``ShapeError``; ``OutputsError`` for lists of different lengths.
    Source: Jiao et al. 2020, arXiv:1909.10351, equation 7; huawei-noah/Pretrained-Language-Model,
    TinyBERT/task_distill.py.
    """
    student, teacher = listed(student_features), listed(teacher_features)
    check_count("tinybert_attention", student, teacher)
    total = student[0].new_zeros(())
    for own, other in zip(student, teacher, strict=True):
        check_equal("tinybert_attention", own, student[0])
        check_equal("tinybert_attention", own, other)
        total = total + (_unmasked(own) - _unmasked(other.detach())).square().sum()
    return LossSum(total, student[0].numel())


def _unmasked(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores <= -100, 0.0)


def tinybert_query_key(
    student_features: tuple[Tensor, ...],
    teacher_features: tuple[Tensor, ...],
    mask: Tensor | None = None,
    *,
    heads: int = 12,
) -> LossSum:
    """TinyBERT's attention term, from the outputs of query and key projections: for models that return no scores.

    The list holds a query and a key for each layer: ``layer_S: [encoder.layer.0.attention.self.query,
    encoder.layer.0.attention.self.key, encoder.layer.1.attention.self.query, …]``. The scores ``q kᵀ / √d`` of each head
    are compared where query and key both count, mean over these pairs and heads, sum over layers. The authors' mean
    also counts padding: it is lower by the share of such pairs. Rotary positions come after the projections, so with them
    these are scores without positions.

    Settings: ``heads``, the number of attention heads of both models.
    Shapes: features ``[batch, length, width]``, whose widths may differ between the sides; mask ``[batch, length]``.
    Raises: ``ShapeError``; ``OutputsError`` for lists of different or odd lengths; ``SettingError``.
    Source: Jiao et al. 2020, arXiv:1909.10351, equation 7.
    """
    check_setting("heads", heads, least=1)
    check_count("tinybert_query_key", student_features, teacher_features)
    check_tokens("tinybert_query_key", *student_features, *teacher_features)
    if len(student_features) % 2:
        raise OutputsError(
            f"tinybert_query_key reads a query and a key per layer, got {len(student_features)} features"
        )
    counts = counted("tinybert_query_key", mask, student_features[0])
    theirs = [feature.detach() for feature in teacher_features]
    own, other = (scores("tinybert_query_key", side, counts, heads) for side in (student_features, theirs))
    total = torch.stack([(one - two).square().sum() for one, two in zip(own, other, strict=True)]).sum()
    return LossSum(total, counts.sum(dim=1).square().sum() * heads)


def scores(owner: str, features: Sequence[Tensor], counts: Tensor, heads: int) -> list[Tensor]:
    """Return the attention scores of each query and key, 0 where one of them does not count.

    Shapes: features ``[batch, length, width]``, queries at even places and keys at odd ones; ``counts``
    ``[batch, length]``; the result ``[batch, heads, length, length]``.
    """
    parts = [in_heads(owner, one.masked_fill(~counts.unsqueeze(-1), 0.0), heads) for one in features]
    return [
        query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        for query, key in zip(parts[::2], parts[1::2], strict=True)
    ]


class TinyBertHidden(nn.Module):
    """TinyBERT: squared error of hidden states after ONE linear layer for all of them, mean over B, L, D, sum over layers.

    List the embeddings too: ``layer_S: [0, 1, 2], layer_T: [0, 6, 12], feature: hidden``. Padding counts in the mean, as
    in the authors' code.

    Shapes: features ``[batch, length, width]``; the width is the same in all layers of a side.
    Raises: ``ShapeError``; ``OutputsError`` for lists of different lengths.
    Source: Jiao et al. 2020, arXiv:1909.10351, equations 8 and 9; one ``fit_dense`` as in
    huawei-noah/Pretrained-Language-Model, TinyBERT/transformer/modeling.py.
    """

    def __init__(self, in_dim: int | list[int], out_dim: int | list[int]) -> None:
        super().__init__()
        self.fit = nn.Linear(shared_width("student", in_dim), shared_width("teacher", out_dim))

    def forward(
        self, student_features: Tensor | tuple[Tensor, ...], teacher_features: Tensor | tuple[Tensor, ...]
    ) -> LossSum:
        """Return the sum of squared errors of all layers, and the number of elements of one layer."""
        student, teacher = listed(student_features), listed(teacher_features)
        check_count("tinybert_hidden", student, teacher)
        check_tokens("tinybert_hidden", *student, *teacher)
        errors = [self.fit(own) - other.detach() for own, other in zip(student, teacher, strict=True)]
        return LossSum(torch.stack([error.square().sum() for error in errors]).sum(), errors[0].numel())


def shared_width(side: str, widths: int | list[int]) -> int:
    """Return the width that all layers of a side have.

    Raises: ``ShapeError`` if they differ.
    """
    found = {widths} if isinstance(widths, int) else set(widths)
    if len(found) > 1:
        raise ShapeError(f"the {side}'s layers are {sorted(found)} wide, but share one linear layer")
    return found.pop()


def tinybert_prediction(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0) -> LossSum:
    """TinyBERT: soft cross-entropy ``−Σ p ln q``, mean over items AND classes, without T².

    With C classes it is 1/C of the usual mean over items.

    Shapes: logits ``[*items, classes]``; temperature a number or ``[*items]``. The authors use 1.
    Raises: ``ShapeError``.
    Source: Jiao et al. 2020, arXiv:1909.10351, equation 10; the mean as in huawei-noah/Pretrained-Language-Model,
    TinyBERT/task_distill.py, ``soft_cross_entropy``.
    """
    log_q, log_p = softened("tinybert_prediction", student_logits, teacher_logits, temperature)
    p = log_p.exp()
    return LossSum(-(p * log_q.masked_fill(p == 0, 0.0)).sum(), log_q.numel())
