"""Sum of cross-entropies over the last axis, with the gradient in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug_presets.numerics import (
    cached_blocks,
    eager_on_cpu,
    recall,
    remember,
    without_autocast,
    working_type,
)
from kdplug_presets.shape import keep_


class Selection(NamedTuple):
    """Selected rows and keys of ``[..., rows, keys]``, as bits (``shape.bits``) that broadcast to the scores."""

    rows: Tensor
    keys: Tensor


def _absent_where_padded(scores: Tensor, keys: Tensor) -> Tensor:
    """Set padded keys that are not finite to ``-inf``, so that the softmax over a row excludes them."""
    return scores.masked_fill((keys == 0) & ~scores.isfinite(), -torch.inf)


def _entropies(
    student: Tensor, teacher: Tensor, selection: Selection | None, weight: Tensor | None, pad_below: float | None
) -> tuple[Tensor, Tensor]:
    """Compute the gradient and the sum, block by block."""
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
    """Compute the same as ``_entropies``, excluding padded keys that are not finite.

    On a CPU this runs only if the first result is not finite: the check costs one sum instead of two passes.
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


def cross_entropy(
    student: Tensor,
    teacher: Tensor,
    selection: Selection | None = None,
    *,
    weight: Tensor | None = None,
    pad_below: float | None = None,
) -> Tensor:
    """Return ``-Σ softmax(teacher) · log_softmax(student)`` over everything, in nats, a scalar in float32 or wider.

    ``selection`` selects rows and the keys within a row. The softmax still runs over all keys, except padded keys that
    hold ``nan`` or infinity. ``weight`` (with 1 on the last axis) multiplies rows. A term whose teacher score is at or
    below ``pad_below`` is excluded. A class that the teacher rules out (``-inf``) adds nothing, whatever the student's
    value.

    At least two axes are needed: the first is processed in blocks.
    """
    rows, keys = selection or (None, None)
    with without_autocast(student):
        result: Tensor = _CrossEntropy.apply(student, teacher.detach(), rows, keys, weight, pad_below)  # type: ignore[no-untyped-call]
    return result
