"""Sum of squared differences, in one buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug_presets.numerics import (
    recall,
    remember,
    sparing_blocks,
    without_autocast,
    working_type,
)
from kdplug_presets.shape import keep_


def _difference(
    student: Tensor, teacher: Tensor, value_bits: Tensor | None, *, pad_below: float | None
) -> tuple[Tensor, Tensor]:
    """Return half the gradient of the sum of squares, and that sum."""
    dtype = working_type(student, teacher)
    difference = torch.empty_like(student, dtype=dtype, memory_format=torch.contiguous_format)
    norms = []
    for block in sparing_blocks(student):
        own, other, part = student[block].to(dtype), teacher[block].to(dtype), difference[block]
        if pad_below is None:
            torch.sub(own, other, out=part)
        else:
            torch.sub(torch.threshold(own, pad_below, 0.0), torch.threshold(other, pad_below, 0.0), out=part)
        if value_bits is not None:
            keep_(part, value_bits[block])
        norms.append(torch.linalg.vector_norm(part, dim=-1).flatten())
        if pad_below is not None:
            part *= own > pad_below
    return difference, torch.cat(norms).square_().sum()


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, value_bits: Tensor | None, pad_below: float | None
    ) -> Tensor:
        difference, total = _difference(student, teacher, value_bits, pad_below=pad_below)
        ctx.pad_below, ctx.dtype = pad_below, student.dtype
        if ctx.needs_input_grad[0]:
            remember(ctx, difference, (student, teacher, value_bits))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = recall(ctx, 2.0 * slope, lambda *inputs: _difference(*inputs, pad_below=ctx.pad_below)[0])
        return gradient.to(ctx.dtype), None, None, None


def squared_distance(
    student: Tensor, teacher: Tensor, value_bits: Tensor | None = None, pad_below: float | None = None
) -> Tensor:
    """Return the sum over all elements of ``(student - teacher)²``, a scalar in float32 or wider.

    ``value_bits`` (a mask as integers, see ``shape.bits``; the student's first axis, the others broadcast) selects elements; an element at or
    below ``pad_below`` is set to 0 on its own side. At least one axis is needed.
    """
    with without_autocast(student):
        result: Tensor = _SquaredDistance.apply(student, teacher.detach(), value_bits, pad_below)  # type: ignore[no-untyped-call]
    return result
