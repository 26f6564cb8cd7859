"""Matching products of two hidden states: the flow between layers and the similarity between tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdplug import LossSum, ShapeError
from kdplug_presets.gram_distance import gram_distance
from kdplug_presets.mask import bits, read_mask
from kdplug_presets.precision import working_type
from kdplug_presets.shape import require_axes, require_pair, written

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

    Tokens that the mask leaves out take no part and the length is the number of valid tokens; an example without any
    is left out.

    Shapes: a pair of ``[batch, length, width]`` on each side, widths equal across sides; mask ``[batch, length]``.
    Raises: ``ShapeError`` where a side is not a pair or shapes differ.
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


def nst(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], mask: Tensor | None = None) -> LossSum:
    """Mean squared error between token similarities ``X0 X1ᵀ / width``, mean over valid pairs. Also named ``mmd``.

    Each side is divided by its own width, so the widths may differ and no projection is needed.

    Shapes: a pair of ``[batch, length, width]`` on each side; mask ``[batch, length]``.
    Raises: ``ShapeError`` where a side is not a pair or shapes differ.
    Source: Huang and Wang 2017 (NST), arXiv:1707.01219; TextBrewer ``mmd_loss`` (repository head: the release on PyPI
    divides by the length where a mask is given).
    """
    student, teacher = _read("nst", student_features, teacher_features, ("batch", "length"))
    for side, (first, second) in (("student_features", student), ("teacher_features", teacher)):
        if first.shape[-1] != second.shape[-1]:
            raise ShapeError(
                f"nst: {side}[0] {written(first)} and {side}[1] {written(second)} differ on the axis 'width': "
                f"{first.shape[-1]} against {second.shape[-1]}"
            )
    batch, length, _ = student[0].shape
    scales = (1.0 / max(student[0].shape[-1], 1), 1.0 / max(teacher[0].shape[-1], 1))
    if mask is None:
        return LossSum(gram_distance(student, teacher, None, over="width", scales=scales), batch * length**2)
    mask = read_mask("nst", mask, student[0], student[0].shape[:2])
    count = mask.sum(dim=1).square().sum()
    return LossSum(gram_distance(student, teacher, bits(mask, student[0].dtype), over="width", scales=scales), count)
