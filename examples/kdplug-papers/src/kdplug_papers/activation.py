"""Compare where and how strongly maps are activated: attention transfer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from kdplug import LossSum
from kdplug_papers.maps import check_maps, listed, to_smaller


def attention_transfer(
    student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]
) -> LossSum:
    """Squared error of the attention maps of both sides, summed over the layers.

    ``Σ mean((Q_s - Q_t)²)``: ``Q`` is the mean over channels of ``F²``, flattened, divided by its L2 norm. The larger map is
    pooled to the smaller one before it is squared. Usual weight: 1000, on every stage.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``, or lists of them; returns a sum over examples.
    Raises: ``ShapeError`` for other shapes.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; constants of RepDistiller.
    """
    total: Tensor | None = None
    for student, teacher in zip(listed(student_features), listed(teacher_features), strict=True):
        check_maps("attention_transfer", student, teacher)
        attention = (normalize(one.square().mean(1).flatten(1)) for one in to_smaller(student, teacher.detach()))
        own, other = attention
        errors = (own - other).square().mean(1).sum()
        total = errors if total is None else total + errors
    assert total is not None
    return LossSum(total, listed(student_features)[0].shape[0])
