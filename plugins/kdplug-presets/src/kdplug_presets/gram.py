"""Match losses on products of two hidden states: flow between layers and similarity between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug import LossSum, ShapeError
from kdplug_presets.numerics import cached_blocks, without_autocast, working_type
from kdplug_presets.shape import bits, keep_, kept, pairs, read_mask, require_axes, require_pair, written

Over = Literal["length", "width"]


def _squared_norms(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=-1)
    return norms.square().sum(dim=-1)


def _per_example(values: Tensor) -> Tensor:
    return values if values.dim() == 0 else values.view(-1, 1, 1)


def _weighted(values: Tensor, weight: Tensor | float) -> Tensor:
    return (values * weight).sum()


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        s0: Tensor,
        s1: Tensor,
        t0: Tensor,
        t1: Tensor,
        token_bits: Tensor | None,
        over: Over,
        scales: tuple[float, float],
        weight: Tensor | float,
    ) -> Tensor:
        if over == "length":
            each = None if token_bits is None else token_bits.unsqueeze(-1)
            difference = torch.bmm(kept(s0, each).mT, kept(s1, each))
            difference.baddbmm_(kept(t0, each).mT, kept(t1, each), beta=scales[0], alpha=-scales[1])
        else:
            difference = torch.bmm(s0, s1.mT)
            difference.baddbmm_(t0, t1.mT, beta=scales[0], alpha=-scales[1])
            if token_bits is not None:
                keep_(difference, pairs(token_bits))
        ctx.over, ctx.scale, ctx.weight = over, scales[0], None if isinstance(weight, Tensor) else weight
        ctx.save_for_backward(s0, s1, difference, token_bits, weight if isinstance(weight, Tensor) else None)
        return _weighted(_squared_norms(difference), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        s0, s1, difference, token_bits, weight = ctx.saved_tensors
        scale = _per_example(2.0 * ctx.scale * slope * (ctx.weight if weight is None else weight))
        first = second = None
        with without_autocast(s0):
            if ctx.needs_input_grad[0]:
                first = _products(ctx.over, s1, difference.mT, scale, token_bits)
            if ctx.needs_input_grad[1]:
                second = _products(ctx.over, s0, difference, scale, token_bits)
        return first, second, None, None, None, None, None, None


def _products(over: Over, features: Tensor, difference: Tensor, scale: Tensor, token_bits: Tensor | None) -> Tensor:
    """Return the valid tokens of ``features``, times ``difference`` over the axis that the loss does not sum over."""
    width = difference.shape[2] if over == "length" else features.shape[2]
    result = features.new_empty((*features.shape[:2], width))
    for block in cached_blocks(features):
        valid = kept(features[block], None if token_bits is None else token_bits[block].unsqueeze(-1))
        if over == "length":
            torch.bmm(valid, difference[block], out=result[block])
        else:
            torch.bmm(difference[block].mT, valid, out=result[block])
    return result.mul_(scale)


class _Expanded(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        s0: Tensor,
        s1: Tensor,
        t0: Tensor,
        t1: Tensor,
        token_bits: Tensor | None,
        over: Over,
        weight: Tensor | float,
    ) -> Tensor:
        a, x = _difference(s0, t0, token_bits), _masked(t0, token_bits)
        aa, ax, xx = _inner(over, a, a), _inner(over, a, x), _inner(over, x, x)
        del a, x
        b, y = _difference(s1, t1, token_bits), _masked(s1, token_bits)
        bb, yb, yy = _inner(over, b, b), _inner(over, y, b), _inner(over, y, y)
        del b, y
        norms = (aa * yy).add_(ax * yb, alpha=2.0).add_(xx * bb).sum(dim=(1, 2)).clamp_(min=0.0)
        ctx.over, ctx.weight = over, None if isinstance(weight, Tensor) else weight
        ctx.save_for_backward(
            s0, s1, t0, t1, token_bits, yy, yb, aa + ax.mT, ax + xx, weight if isinstance(weight, Tensor) else None
        )
        return _weighted(norms, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        s0, s1, t0, t1, token_bits, yy, yb, left, right, weight = ctx.saved_tensors
        scale = _per_example(2.0 * slope * (ctx.weight if weight is None else weight))
        first = second = None
        with without_autocast(s0):
            if ctx.needs_input_grad[0]:
                first = _apply(ctx.over, yy * scale, _difference(s0, t0, token_bits))
                _add_applied(ctx.over, first, yb * scale, _masked(t0, token_bits))
            if ctx.needs_input_grad[1]:
                second = _apply(ctx.over, left * scale, _masked(s1, token_bits))
                _add_applied(ctx.over, second, right * scale, _difference(s1, t1, token_bits))
        return first, second, None, None, None, None, None


def _masked(features: Tensor, token_bits: Tensor | None) -> Tensor:
    return kept(features, None if token_bits is None else token_bits.unsqueeze(-1))


def _difference(student: Tensor, teacher: Tensor, token_bits: Tensor | None) -> Tensor:
    difference = student - teacher
    return difference if token_bits is None else keep_(difference, token_bits.unsqueeze(-1))


def _inner(over: Over, left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right.mT) if over == "length" else torch.bmm(left.mT, right)


def _apply(over: Over, matrix: Tensor, features: Tensor) -> Tensor:
    return torch.bmm(matrix, features) if over == "length" else torch.bmm(features, matrix.mT)


def _add_applied(over: Over, result: Tensor, matrix: Tensor, features: Tensor) -> None:
    if over == "length":
        result.baddbmm_(matrix, features)
    else:
        result.baddbmm_(features, matrix.mT)


def expansion_pays(s0: Tensor, s1: Tensor, over: Over) -> bool:
    """Return whether ten products with ``k·k`` matrices need fewer multiplications than four with ``m·n`` ones."""
    length, m, n = s0.shape[1], s0.shape[2], s1.shape[2]
    k, m, n = (length, m, n) if over == "length" else (m, length, length)
    return 5 * k * (m + n) < 4 * m * n


def gram_distance(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    token_bits: Tensor | None,
    *,
    over: Over,
    scales: tuple[float, float] = (1.0, 1.0),
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Return the sum over examples of ``weight · ‖scales[0] · G(student) - scales[1] · G(teacher)‖²``, a scalar.

    Shapes: features ``[batch, length, width]`` of one floating-point type, float32 or wider, the teacher's without a
    gradient; ``token_bits`` ``[batch, length]``, a mask as integers (see ``shape.bits``); weight a number or ``[batch]``.
    """
    s0, s1 = student
    t0, t1 = teacher
    with without_autocast(s0):
        is_equal_in_shape = s0.shape == t0.shape and s1.shape == t1.shape and scales[0] == scales[1]
        if is_equal_in_shape and expansion_pays(s0, s1, over):
            factor = weight * scales[0] ** 2
            result: Tensor = _Expanded.apply(s0, s1, t0, t1, token_bits, over, factor)  # type: ignore[no-untyped-call]
        else:
            result = _Direct.apply(s0, s1, t0, t1, token_bits, over, scales, weight)  # type: ignore[no-untyped-call]
    return result


Pair = tuple[Tensor, Tensor]


def _read(owner: str, student: Sequence[Tensor], teacher: Sequence[Tensor], axes: Sequence[str]) -> tuple[Pair, Pair]:
    s0, s1 = require_pair(owner, "student_features", student)
    t0, t1 = require_pair(owner, "teacher_features", teacher)
    for i, (left, right) in enumerate(((s0, t0), (s1, t1))):
        require_axes(owner, (f"student_features[{i}]", left), (f"teacher_features[{i}]", right), axes)
    dtype = working_type(s0, s1, t0, t1)
    return (s0.to(dtype), s1.to(dtype)), (t0.detach().to(dtype), t1.detach().to(dtype))


def fsp(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], mask: Tensor | None = None) -> LossSum:
    """Mean squared error between ``X0ᵀ X1 / length`` of student and teacher, mean over examples. Also named ``gram``.

    Masked tokens are excluded, and the length is the number of valid tokens; an example without any
    is excluded.

    Shapes: a pair of ``[batch, length, width]`` on each side, widths equal across sides; mask ``[batch, length]``.
    Raises: ``ShapeError`` if a side is not a pair or shapes differ.
    Source: Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR; TextBrewer ``fsp_loss``.
    """
    student, teacher = _read("fsp", student_features, teacher_features, ("batch", "length", "width"))
    batch, length, rows = student[0].shape
    entries = max(rows * student[1].shape[-1], 1)
    if mask is None:
        weight = 1.0 / (entries * max(length, 1) ** 2)
        return LossSum(gram_distance(student, teacher, None, over="length", weight=weight), batch)
    mask = read_mask("fsp", mask, student[0], student[0].shape[:2])
    lengths = mask.sum(dim=1)
    weights = (lengths.clamp(min=1).to(student[0].dtype).square() * entries).reciprocal()
    return LossSum(
        gram_distance(student, teacher, bits(mask, student[0].dtype), over="length", weight=weights),
        (lengths > 0).sum(),
    )


def nst(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    masked_divisor: Literal["width", "length"] = "width",
) -> LossSum:
    """Mean squared error between token similarities ``X0 X1ᵀ / width``, mean over valid pairs. Also named ``mmd``.

    Each side is divided by its own width, so the widths may differ and no projection is needed.

    Settings: ``masked_divisor``, ``length`` divides by the padded length of the batch instead if there is a mask, as
    TextBrewer's release 0.2.1.post1 does. The loss of a batch then depends on its padding.

    Shapes: a pair of ``[batch, length, width]`` on each side; mask ``[batch, length]``.
    Raises: ``ShapeError`` if a side is not a pair or shapes differ.
    Source: Huang and Wang 2017 (NST), arXiv:1707.01219; TextBrewer ``mmd_loss`` (repository head).
    """
    student, teacher = _read("nst", student_features, teacher_features, ("batch", "length"))
    for side, (first, second) in (("student_features", student), ("teacher_features", teacher)):
        if first.shape[-1] != second.shape[-1]:
            raise ShapeError(
                f"nst: {side}[0] {written(first)} and {side}[1] {written(second)} differ on axis 'width': "
                f"{first.shape[-1]} against {second.shape[-1]}"
            )
    batch, length, _ = student[0].shape
    scales = (1.0 / max(student[0].shape[-1], 1), 1.0 / max(teacher[0].shape[-1], 1))
    if mask is None:
        return LossSum(gram_distance(student, teacher, None, over="width", scales=scales), batch * length**2)
    mask = read_mask("nst", mask, student[0], student[0].shape[:2])
    if masked_divisor == "length":
        scales = (1.0 / max(length, 1), 1.0 / max(length, 1))
    count = mask.sum(dim=1).square().sum()
    return LossSum(gram_distance(student, teacher, bits(mask, student[0].dtype), over="width", scales=scales), count)
