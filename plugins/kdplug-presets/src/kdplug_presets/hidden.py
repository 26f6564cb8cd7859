"""Matching hidden states: squared error, cosine distance, and the distance of normalized first tokens."""

from __future__ import annotations

from torch import Tensor

from kdplug import LossSum, ShapeError
from kdplug_presets.cosine_distance import cosine_distance
from kdplug_presets.direction_distance import direction_distance
from kdplug_presets.mask import bits, read_mask
from kdplug_presets.plain import is_plain
from kdplug_presets.precision import working_type
from kdplug_presets.shape import HIDDEN, one_pair, require_axes, require_rank, require_tensor, written
from kdplug_presets.squared_distance import plain_squared_distance, squared_distance


def hidden_mse(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> LossSum:
    """Mean squared error between hidden states: mean over valid tokens of the mean over the width.

    Shapes: features ``[batch, length, width]`` (any equal shape, width last); mask: the features' without the width.
    Raises: ``ShapeError`` where shapes differ.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351; TextBrewer ``hid_mse_loss``.
    """
    if mask is None and is_plain(student_features, teacher_features):
        return LossSum(plain_squared_distance(student_features, teacher_features), student_features.numel())
    student, teacher = one_pair("hidden_mse", student_features, teacher_features, HIDDEN)
    items, width = student.shape[:-1], max(student.shape[-1], 1)
    if mask is None:
        return LossSum(squared_distance(student, teacher), items.numel() * width)
    mask = read_mask("hidden_mse", mask, student, items)
    token_bits = bits(mask, working_type(student, teacher)).unsqueeze(-1)
    return LossSum(squared_distance(student, teacher, token_bits), mask.sum() * width)


def cos(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> LossSum:
    """Cosine distance ``1 - cos`` between hidden states, in [0, 2], mean over valid tokens.

    Shapes: features ``[batch, length, width]`` (any equal shape, width last); mask: the features' without the width.
    Raises: ``ShapeError`` where shapes differ.
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

    Position 0 is read whatever the mask says there, but an example of which nothing counts is left out. A zero vector
    has no direction and stays zero.

    Shapes: features ``[batch, length, width]`` or ``[batch, width]``, either on either side; mask ``[batch, length]``.
    Raises: ``ShapeError`` where batch, width or mask differ.
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
        raise ShapeError(f"pkd: {side} {written(features)} has no position 0")
    return features[:, 0]


def _counting_examples(mask: Tensor, features: Tensor) -> Tensor:
    """Which examples have any valid token, ``[batch, 1]``; features without a length take a mask of any length."""
    items = features.shape[:2] if features.dim() == 3 else features.shape[:1] + mask.shape[1:]
    counts = read_mask("pkd", mask, features, items)
    return counts.unsqueeze(1) if counts.dim() == 1 else counts.any(dim=1, keepdim=True)
