"""Match losses on attention maps: squared error and cross-entropy, per head or over all heads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdplug import LossSum, ShapeError
from kdplug_presets.cross_entropy import Selection, cross_entropy
from kdplug_presets.numerics import promoted, without_autocast, working_type
from kdplug_presets.shape import ATTENTION, bits, one_pair, pairs, read_mask, require_rank, written
from kdplug_presets.squared_distance import squared_distance

Inputs = Literal["scores", "probs"]


def _read(owner: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = one_pair(owner, student, teacher, ATTENTION)
    require_rank(owner, "student_features", student, (3, 4))
    return student, teacher


def _token_mask(owner: str, mask: Tensor, student: Tensor) -> Tensor:
    queries, keys = student.shape[-2:]
    if queries != keys:
        raise ShapeError(
            f"{owner}: with a mask, there must be as many queries as keys, got student_features {written(student)}: "
            f"{queries} queries and {keys} keys"
        )
    return read_mask(owner, mask, student, torch.Size((student.shape[0], keys)))


def _squared(student: Tensor, teacher: Tensor, mask: Tensor | None, pad_below: float | None) -> LossSum:
    if mask is None:
        return LossSum(squared_distance(student, teacher, pad_below=pad_below), student.numel())
    valid, heads = pairs(bits(mask, working_type(student, teacher))), 1
    count = mask.sum(dim=-1).square().sum()
    if student.dim() == 4:
        valid, heads = valid.unsqueeze(1), student.shape[1]
    return LossSum(squared_distance(student, teacher, valid), count * heads)


def attention_mse(
    student_features: Tensor,
    teacher_features: Tensor,
    mask: Tensor | None = None,
    *,
    pad_below: float | None = -1e-3,
) -> LossSum:
    """Mean squared error between attention maps over all valid pairs of tokens of every head.

    Without a mask, an entry at or below ``pad_below`` counts as padding and is set to 0 on its own side (TextBrewer's
    rule; ``None`` disables it). With a mask the rule is not applied.

    Settings: ``pad_below``, threshold at or below which an entry is padding if there is no mask; ``null`` disables it.

    Shapes: features ``[batch, heads, length, length]`` or ``[batch, length, length]``; mask ``[batch, length]``.
    Raises: ``ShapeError`` if shapes differ.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351; TextBrewer ``att_mse_loss``.
    """
    student, teacher = _read("attention_mse", student_features, teacher_features)
    if mask is not None:
        mask = _token_mask("attention_mse", mask, student)
    return _squared(student, teacher, mask, pad_below)


def attention_mse_sum(
    student_features: Tensor,
    teacher_features: Tensor,
    mask: Tensor | None = None,
    *,
    pad_below: float | None = -1e-3,
) -> LossSum:
    """Mean squared error between attention maps summed over their heads, over all valid pairs of tokens.

    Padding is detected as in ``attention_mse``, after the sum over heads.

    Settings: ``pad_below``, threshold at or below which an entry is padding if there is no mask; ``null`` disables it.

    Shapes: features ``[batch, heads, length, length]`` or ``[batch, length, length]``; mask ``[batch, length]``.
    Raises: ``ShapeError`` if shapes differ, the number of heads included.
    Source: TextBrewer ``att_mse_sum_loss``, arXiv:2002.12620.
    """
    student, teacher = _read("attention_mse_sum", student_features, teacher_features)
    if mask is not None:
        mask = _token_mask("attention_mse_sum", mask, student)
    if student.dim() == 4:
        student, teacher = promoted(student, teacher)
        student, teacher = student.sum(dim=1), teacher.sum(dim=1)
    return _squared(student, teacher, mask, pad_below)


def _entropy_of_scores(student: Tensor, teacher: Tensor, mask: Tensor | None, pad_below: float | None) -> Tensor:
    if mask is None:
        return cross_entropy(student, teacher, pad_below=pad_below)
    token_bits = bits(mask, working_type(student, teacher))
    if student.dim() == 4:
        token_bits = token_bits.unsqueeze(1)
    return cross_entropy(student, teacher, Selection(rows=token_bits.unsqueeze(-1), keys=token_bits.unsqueeze(-2)))


def _entropy_of_probs(student: Tensor, teacher: Tensor, mask: Tensor | None, pad_below: float | None) -> Tensor:
    student, teacher = promoted(student, teacher)
    if mask is not None:
        left_out = ~pairs(mask)
        left_out = left_out if student.dim() == 3 else left_out.unsqueeze(1)
        student, teacher = student.masked_fill(left_out, 1.0), teacher.masked_fill(left_out, 0.0)
    elif pad_below is not None:
        teacher = teacher.masked_fill(teacher <= pad_below, 0.0)
    with without_autocast(student):
        return -(teacher * student.clamp_min(torch.finfo(student.dtype).eps).log()).sum()


def _entropy(student: Tensor, teacher: Tensor, mask: Tensor | None, inputs: Inputs, pad_below: float | None) -> LossSum:
    measure = _entropy_of_probs if inputs == "probs" else _entropy_of_scores
    total = measure(student, teacher, mask, pad_below)
    if mask is None:
        return LossSum(total, student.shape[:-1].numel())
    return LossSum(total, mask.sum() * (student.shape[1] if student.dim() == 4 else 1))


def attention_ce(
    student_features: Tensor,
    teacher_features: Tensor,
    mask: Tensor | None = None,
    *,
    inputs: Inputs = "scores",
    pad_below: float | None = -1e-3,
) -> LossSum:
    """Cross-entropy of the student's attention under the teacher's, in nats, mean over the rows of every head.

    ``inputs="scores"`` takes scores and applies a softmax over the keys. ``"probs"`` takes probabilities, as
    transformers return attentions: another softmax over those would leave almost no signal. A student probability below
    the precision of its type is raised to it.

    The mask selects rows (queries) and, within a row, keys; the softmax runs over all keys, including padded ones, unless
    they hold ``-inf`` or ``nan``. Without a mask, a key whose teacher value is at or below ``pad_below`` is excluded
    (TextBrewer's rule; ``None`` disables it). With a mask the rule is not applied.

    Settings: ``inputs``, ``scores`` or ``probs``; ``pad_below``, threshold at or below which a teacher's value is
    padding if there is no mask; ``null`` disables it.

    Shapes: features ``[batch, heads, length, length]`` or ``[batch, length, length]``; mask ``[batch, length]``.
    Raises: ``ShapeError`` if shapes differ.
    Source: TextBrewer ``att_ce_loss``, arXiv:2002.12620.
    """
    student, teacher = _read("attention_ce", student_features, teacher_features)
    if mask is not None:
        mask = _token_mask("attention_ce", mask, student)
    return _entropy(student, teacher, mask, inputs, pad_below)


def attention_ce_mean(
    student_features: Tensor,
    teacher_features: Tensor,
    mask: Tensor | None = None,
    *,
    inputs: Inputs = "scores",
    pad_below: float | None = -1e-3,
) -> LossSum:
    """Cross-entropy as in ``attention_ce``, after averaging scores (or probabilities) over heads, mean over rows.

    Settings: ``inputs``, ``scores`` or ``probs``; ``pad_below``, threshold at or below which a teacher's value is
    padding if there is no mask; ``null`` disables it.

    Shapes: features ``[batch, heads, length, length]`` or ``[batch, length, length]``; mask ``[batch, length]``.
    Raises: ``ShapeError`` if shapes differ, the number of heads included.
    Source: TextBrewer ``att_ce_mean_loss``, arXiv:2002.12620.
    """
    student, teacher = _read("attention_ce_mean", student_features, teacher_features)
    if mask is not None:
        mask = _token_mask("attention_ce_mean", mask, student)
    if student.dim() == 4:
        student, teacher = promoted(student, teacher)
        student, teacher = student.mean(dim=1), teacher.mean(dim=1)
    return _entropy(student, teacher, mask, inputs, pad_below)
