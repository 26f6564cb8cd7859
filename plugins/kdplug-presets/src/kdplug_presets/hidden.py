"""Match losses on hidden states: squared error, cosine distance, and the distance of normalized first tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug import LossSum, ShapeError
from kdplug_presets.numerics import promoted, sparing_blocks, without_autocast, working_type
from kdplug_presets.shape import (
    HIDDEN,
    bits,
    keep_,
    kept,
    one_pair,
    read_mask,
    require_axes,
    require_rank,
    require_tensor,
    written,
)
from kdplug_presets.squared_distance import squared_distance


def _length(vectors: Tensor) -> Tensor:
    """Return the length, or 1 for the zero vector, which has no direction and stays zero."""
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
    """Return the sum over items of ``‖student / ‖student‖ − teacher / ‖teacher‖‖²``, a scalar in float32 or wider.

    Shapes: both ``[items, width]``; ``row_bits`` ``[items, 1]``, a mask as integers (see ``shape.bits``).
    """
    student, teacher = promoted(student, teacher)
    with without_autocast(student):
        result: Tensor = _DirectionDistance.apply(student, teacher, row_bits)  # type: ignore[no-untyped-call]
    return result


_EPS = 1e-12
"""Constant that ``torch.nn.functional.cosine_embedding_loss`` adds to squared lengths."""


def _cosines(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each item the cosine, the student's squared length, and the inverse product of both lengths."""
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
    """Return the sum of ``1 - cos(student, teacher)`` over the items that ``value_bits`` selects, a scalar.

    Shapes: both ``[items, width]``; ``value_bits`` ``[items]``, a mask as integers (see ``shape.bits``).
    """
    student, teacher = promoted(student, teacher)
    with without_autocast(student):
        result: Tensor = _CosineDistance.apply(student, teacher, value_bits)  # type: ignore[no-untyped-call]
    return result


def hidden_mse(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> LossSum:
    """Mean squared error between hidden states: mean over valid tokens of the mean over the width.

    Shapes: features ``[batch, length, width]`` (any equal shape, width last); mask: the shape of the features without the width.
    Raises: ``ShapeError`` if shapes differ.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351; TextBrewer ``hid_mse_loss``.
    """
    student, teacher = one_pair("hidden_mse", student_features, teacher_features, HIDDEN)
    items, width = student.shape[:-1], max(student.shape[-1], 1)
    if mask is None:
        return LossSum(squared_distance(student, teacher), items.numel() * width)
    mask = read_mask("hidden_mse", mask, student, items)
    token_bits = bits(mask, working_type(student, teacher)).unsqueeze(-1)
    return LossSum(squared_distance(student, teacher, token_bits), mask.sum() * width)


def cos(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> LossSum:
    """Cosine distance ``1 - cos`` between hidden states, in [0, 2], mean over valid tokens.

    Shapes: features ``[batch, length, width]`` (any equal shape, width last); mask: the shape of the features without the width.
    Raises: ``ShapeError`` if shapes differ.
    Source: Sanh et al. 2019 (DistilBERT), arXiv:1910.01108; TextBrewer ``cos_loss``.
    """
    student, teacher = one_pair("cos", student_features, teacher_features, HIDDEN)
    items, width = student.shape[:-1], student.shape[-1]
    flat = student.reshape(items.numel(), width), teacher.reshape(items.numel(), width)
    if mask is None:
        return LossSum(cosine_distance(*flat), items.numel())
    mask = read_mask("cos", mask, student, items)
    return LossSum(cosine_distance(*flat, bits(mask.reshape(-1), working_type(student, teacher))), mask.sum())


def pkd(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> LossSum:
    """Squared distance between L2-normalized hidden states at position 0, mean over examples.

    Position 0 is read regardless of the mask, but an example without any valid token is excluded. A zero vector
    has no direction and stays zero.

    Shapes: features ``[batch, length, width]`` or ``[batch, width]``, either on either side; mask ``[batch, length]``.
    Raises: ``ShapeError`` if batch, width or mask differ.
    Source: Sun et al. 2019 (PKD), arXiv:1908.09355; TextBrewer ``pkd_loss``.
    """
    student = _first_token("student_features", student_features)
    teacher = _first_token("teacher_features", teacher_features)
    require_axes("pkd", ("student_features", student), ("teacher_features", teacher), ("batch", "width"))
    if mask is None:
        return LossSum(direction_distance(student, teacher), student.shape[0])
    counts = _counting_examples(mask, student_features)
    return LossSum(direction_distance(student, teacher, bits(counts, working_type(student, teacher))), counts.sum())


def _first_token(side: str, features: Tensor) -> Tensor:
    features = require_tensor("pkd", side, features)
    require_rank("pkd", side, features, (2, 3))
    if features.dim() == 2:
        return features
    if features.shape[1] == 0:
        raise ShapeError(
            f"pkd: {side} {written(features)} has no position 0. Return hidden states of at least one token"
        )
    return features[:, 0]


def _counting_examples(mask: Tensor, features: Tensor) -> Tensor:
    """Return the examples with any valid token, ``[batch, 1]``; features without a length accept a mask of any length."""
    items = features.shape[:2] if features.dim() == 3 else features.shape[:1] + mask.shape[1:]
    counts = read_mask("pkd", mask, features, items)
    return counts.unsqueeze(1) if counts.dim() == 1 else counts.any(dim=1, keepdim=True)
