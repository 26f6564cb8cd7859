"""Sum of cosine distances, with nothing but two numbers per item kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug_presets.block import sparing_blocks
from kdplug_presets.mask import keep_
from kdplug_presets.precision import promoted, without_autocast

_EPS = 1e-12
"""What ``torch.nn.functional.cosine_embedding_loss`` adds to squared lengths."""


def _cosines(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each item: the cosine, the student's squared length, and the inverse product of both lengths."""
    student_square = torch.linalg.vector_norm(student, dim=-1).square_().add_(_EPS)
    teacher_square = torch.linalg.vector_norm(teacher, dim=-1).square_().add_(_EPS)
    inverse = student_square.rsqrt() * teacher_square.rsqrt()
    return (student * teacher).sum(dim=-1) * inverse, student_square, inverse


class _CosineDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, value_bits: Tensor | None) -> Tensor:
        parts = [_cosines(student[block], teacher[block]) for block in sparing_blocks(student)]
        cosine, student_square, inverse = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.save_for_backward(student, teacher, cosine / student_square, inverse, value_bits)
        distance = (1.0 - cosine).clamp_(min=0.0)
        return (distance if value_bits is None else keep_(distance, value_bits)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, along_student, along_teacher, value_bits = ctx.saved_tensors
        along_student, along_teacher = (along_student * slope).unsqueeze(-1), (along_teacher * -slope).unsqueeze(-1)
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        for block in sparing_blocks(student):
            own = torch.mul(student[block], along_student[block], out=gradient[block])
            own.addcmul_(teacher[block], along_teacher[block])
            if value_bits is not None:
                keep_(own, value_bits[block].unsqueeze(-1))
        return gradient, None, None


def cosine_distance(student: Tensor, teacher: Tensor, value_bits: Tensor | None = None) -> Tensor:
    """Sum of ``1 - cos(student, teacher)`` over the items that the bits select (see ``mask.bits``), a scalar.

    Shapes: both ``[items, width]``, bits ``[items]``.
    """
    student, teacher = promoted(student, teacher)
    with without_autocast(student):
        result: Tensor = _CosineDistance.apply(student, teacher, value_bits)  # type: ignore[no-untyped-call]
    return result
