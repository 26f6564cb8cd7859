"""Token features ``[batch, length, width]`` and softened scores: checks, masks and sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug import OutputsError, ShapeError
from kdplug_papers.checks import check_equal


def check_tokens(owner: str, *features: Tensor) -> None:
    """Raise ``ShapeError`` unless each feature is ``[batch, length, width]``, with the same batch and length."""
    for feature in features:
        if feature.dim() != 3:
            raise ShapeError(f"{owner} compares token features [batch, length, width], got {list(feature.shape)}")
        if feature.shape[:2] != features[0].shape[:2]:
            raise ShapeError(
                f"{owner} compares the same tokens on both sides, got {list(features[0].shape)} and "
                f"{list(feature.shape)} as [batch, length, width]"
            )


def check_count(owner: str, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> None:
    """Raise ``OutputsError`` unless both sides have the same number of layers."""
    if len(student) != len(teacher):
        raise OutputsError(f"{owner} compares layers in pairs, got {len(student)} and {len(teacher)}")


def counted(owner: str, mask: Tensor | None, feature: Tensor) -> Tensor:
    """Return bool ``[batch, length]``: the tokens that count, all without a mask.

    Raises: ``ShapeError`` for a mask of another shape.
    """
    if mask is None:
        return torch.ones(feature.shape[:2], dtype=torch.bool, device=feature.device)
    if mask.shape != feature.shape[:2]:
        raise ShapeError(f"{owner}: mask {list(mask.shape)} does not match {list(feature.shape)}")
    return mask


def in_heads(owner: str, feature: Tensor, heads: int) -> Tensor:
    """Split the width into heads: ``[batch, length, width]`` to ``[batch, heads, length, width / heads]``.

    Raises: ``ShapeError`` if the width is not a multiple of ``heads``.
    """
    batch, length, width = feature.shape
    if width % heads:
        raise ShapeError(f"{owner}: {heads} heads do not divide a width of {width} {list(feature.shape)}")
    return feature.reshape(batch, length, heads, width // heads).transpose(1, 2)


def softened(owner: str, student: Tensor, teacher: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the logarithms of both softmaxes over the last axis, at ``temperature``; the teacher's are detached.

    Shapes: logits ``[*items, classes]``; temperature a number or ``[*items]``.
    """
    check_equal(owner, student, teacher)
    degree = per_item(temperature)
    return (student / degree).log_softmax(-1), (teacher.detach() / degree).log_softmax(-1)


def per_item(temperature: Tensor | float) -> Tensor | float:
    """Return a temperature that broadcasts along classes."""
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature
