"""Sum of squared distances between vectors that were scaled to length 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug_presets.mask import kept
from kdplug_presets.precision import promoted, without_autocast


def _length(vectors: Tensor) -> Tensor:
    """The length, and 1 for the zero vector, which has no direction and stays zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return length.masked_fill_(length == 0, 1.0)


class _DirectionDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, row_bits: Tensor | None) -> Tensor:
        student, teacher = kept(student, row_bits), kept(teacher, row_bits)
        length = _length(student)
        direction = student / length
        difference = direction - teacher / _length(teacher)
        ctx.save_for_backward(direction, difference, length)
        return difference.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        direction, difference, length = ctx.saved_tensors
        along = (direction * difference).sum(dim=-1, keepdim=True)
        gradient = torch.addcmul(difference, direction, along, value=-1.0).mul_(2.0 * slope / length)
        return gradient, None, None


def direction_distance(student: Tensor, teacher: Tensor, row_bits: Tensor | None = None) -> Tensor:
    """Sum over items of ``|student / |student| - teacher / |teacher||²``, a scalar of at least 32 bits.

    Shapes: both ``[items, width]``, bits (see ``mask.bits``) ``[items, 1]``.
    """
    student, teacher = promoted(student, teacher)
    with without_autocast(student):
        result: Tensor = _DirectionDistance.apply(student, teacher, row_bits)  # type: ignore[no-untyped-call]
    return result
