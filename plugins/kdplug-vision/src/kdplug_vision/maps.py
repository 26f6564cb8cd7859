"""Feature maps ``[batch, channels, height, width]`` and pooled features ``[batch, width]``: checks and sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from kdplug import SettingError, ShapeError


def check_maps(owner: str, *features: Tensor) -> None:
    """Raise ``ShapeError`` unless each feature is a map, and all have the same batch."""
    for feature in features:
        if feature.dim() != 4:
            raise ShapeError(f"{owner} compares maps [batch, channels, height, width], got {list(feature.shape)}")
    check_batch(owner, *features)


def check_batch(owner: str, *features: Tensor) -> None:
    """Raise ``ShapeError`` unless all features have the same batch size."""
    if len({feature.shape[0] for feature in features}) > 1:
        sizes = ", ".join(str(feature.shape[0]) for feature in features)
        raise ShapeError(f"{owner} compares the same examples on both sides, got batches of {sizes}")


def check_equal(owner: str, student: Tensor, teacher: Tensor, what: str = "shape") -> None:
    """Raise ``ShapeError`` unless both tensors have the same shape."""
    if student.shape != teacher.shape:
        raise ShapeError(
            f"{owner} needs the same {what} on both sides, got {list(student.shape)} for the student and "
            f"{list(teacher.shape)} for the teacher"
        )


def check_setting(
    name: str, value: float, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raise ``SettingError`` for a setting that is less than ``least``, or not between ``above`` and ``below``."""
    if value < least:
        raise SettingError(f"must be >= {least:g}, got {value!r}", field=name)
    if value <= above:
        raise SettingError(f"must be > {above:g}, got {value!r}", field=name)
    if value >= below:
        raise SettingError(f"must be < {below:g}, got {value!r}", field=name)


def to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the height and width of the smaller one."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    student, teacher = (one if one.shape[2:] == size else adaptive_avg_pool2d(one, size) for one in (student, teacher))
    return student, teacher


def listed(features: Tensor | Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return the features of a term as a tuple, also for a term with single layers."""
    return (features,) if isinstance(features, Tensor) else tuple(features)


def widths(dims: int | Iterable[int]) -> list[int]:
    """Return the widths of a term's layers as a list, also for a term with single layers."""
    return [dims] if isinstance(dims, int) else list(dims)
