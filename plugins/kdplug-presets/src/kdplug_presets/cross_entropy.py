"""Sum of cross-entropies over the last axis, with the gradient in closed form."""

from __future__ import annotations

from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug_presets.numerics import (
    cached_blocks,
    cut,
    eager_on_cpu,
    in_type,
    is_small,
    recall,
    remember,
    without_autocast,
    working_type,
)
from kdplug_presets.shape import keep_


class Selection(NamedTuple):
    """What of ``[..., rows, keys]`` counts, as bits (``mask.bits``); both have the scores' first axis and broadcast."""

    rows: Tensor
    keys: Tensor


def _absent_where_padded(scores: Tensor, keys: Tensor) -> Tensor:
    """``scores`` with ``-inf`` at padded keys that are not finite: the softmax over a row then leaves them out."""
    return scores.masked_fill((keys == 0) & ~scores.isfinite(), -torch.inf)


def _entropies(
    student: Tensor, teacher: Tensor, selection: Selection | None, weight: Tensor | None, pad_below: float | None
) -> tuple[Tensor, Tensor]:
    """The gradient and the sum, block by block."""
    dtype = working_type(student, teacher)
    gradient = torch.empty_like(student, dtype=dtype, memory_format=torch.contiguous_format)
    totals = []
    for block in cached_blocks(student):
        scores, part = teacher[block].to(dtype), gradient[block]
        target = torch.softmax(scores, dim=-1)
        log_probs = torch.log_softmax(student[block].to(dtype), dim=-1).clamp_(min=torch.finfo(dtype).min)
        if pad_below is not None:
            target *= scores > pad_below
        if weight is not None:
            target *= weight[block]
        if selection is not None:
            keep_(target, selection.keys[block])
        by_row = torch.mul(target, log_probs, out=part).sum(dim=-1, keepdim=True)
        torch.exp(log_probs, out=part).mul_(target.sum(dim=-1, keepdim=True)).sub_(target)
        if selection is not None:
            keep_(by_row, selection.rows[block])
            keep_(part, selection.rows[block])
        totals.append(by_row.sum())
    return gradient, -torch.stack(totals).sum()


def _selected_entropies(
    student: Tensor,
    teacher: Tensor,
    rows: Tensor | None,
    keys: Tensor | None,
    weight: Tensor | None,
    *,
    pad_below: float | None,
) -> tuple[Tensor, Tensor]:
    """As ``_entropies``, with padded keys that are not finite absent.

    On a CPU they are looked for where the first result is not finite: that costs a sum, not two passes.
    """
    if rows is None or keys is None:
        return _entropies(student, teacher, None, weight, pad_below)
    selection = Selection(rows, keys)
    if eager_on_cpu(student):
        gradient, total = _entropies(student, teacher, selection, weight, pad_below)
        if total.isfinite():
            return gradient, total
    student, teacher = _absent_where_padded(student, keys), _absent_where_padded(teacher, keys)
    return _entropies(student, teacher, selection, weight, pad_below)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        rows: Tensor | None,
        keys: Tensor | None,
        weight: Tensor | None,
        pad_below: float | None,
    ) -> Tensor:
        gradient, total = _selected_entropies(student, teacher, rows, keys, weight, pad_below=pad_below)
        ctx.pad_below, ctx.dtype = pad_below, student.dtype
        if ctx.needs_input_grad[0]:
            remember(ctx, gradient, (student, teacher, rows, keys, weight))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        gradient = recall(ctx, slope, lambda *inputs: _selected_entropies(*inputs, pad_below=ctx.pad_below)[0])
        return gradient.to(ctx.dtype), None, None, None, None, None


def plain_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor | None:
    """``cross_entropy`` by torch's own, in one operation; ``None`` where that was asked ``0 * -inf``, to which it has no answer.

    Both ``[*items, classes]`` in one type, on a CPU, where reading a number waits for nobody.
    """
    target = torch.softmax(teacher, dim=-1)
    if student.dim() != 2:
        student, target = student.reshape(-1, student.shape[-1]), target.reshape(-1, student.shape[-1])
    total = torch.nn.functional.cross_entropy(student, target, reduction="sum")
    return total if isfinite(total.item()) else None


def _in_few_operations(student: Tensor, teacher: Tensor, weight: Tensor | None, pad_below: float | None) -> Tensor:
    dtype = working_type(student, teacher)
    if weight is None and pad_below is None and eager_on_cpu(student):
        total = plain_cross_entropy(in_type(student, dtype), in_type(teacher, dtype))
        if total is not None:
            return total
    target = torch.softmax(teacher, dim=-1, dtype=dtype).neg_()
    log_probs = torch.log_softmax(student, dim=-1, dtype=dtype).clamp(min=torch.finfo(dtype).min)
    if pad_below is not None:
        target = target * (teacher > pad_below)
    if weight is not None:
        target = target * weight
    return torch.dot(target.reshape(-1), log_probs.reshape(-1))


def cross_entropy(
    student: Tensor,
    teacher: Tensor,
    selection: Selection | None = None,
    *,
    weight: Tensor | None = None,
    pad_below: float | None = None,
) -> Tensor:
    """``-Σ softmax(teacher) · log_softmax(student)`` over everything, in nats, a scalar of at least 32 bits.

    ``selection`` picks rows and the keys within a row. The softmax still runs over all keys, except that a padded key
    which holds ``nan`` or infinity is absent. ``weight`` (with 1 on the last axis) multiplies rows. A term whose
    teacher score is at or below ``pad_below`` is left out. A class that the teacher rules out (``-inf``) adds nothing,
    whatever the student gives it.

    At least two axes: the first is worked on in blocks.
    """
    if selection is None and is_small(student):
        return _in_few_operations(student, cut(teacher), weight, pad_below)
    rows, keys = selection or (None, None)
    with without_autocast(student):
        result: Tensor = _CrossEntropy.apply(student, teacher.detach(), rows, keys, weight, pad_below)  # type: ignore[no-untyped-call]
    return result
