"""Checks of shapes and settings, for all methods."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from kdplug import SettingError, ShapeError


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


def listed(features: Tensor | Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return the features of a term as a tuple, also for a term with single layers."""
    return (features,) if isinstance(features, Tensor) else tuple(features)
