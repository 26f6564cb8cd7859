"""Shape checks and masks. Nothing is ever broadcast; errors name both shapes and the axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdplug import OutputsError, ShapeError

ATTENTION = {3: ("batch", "queries", "keys"), 4: ("batch", "heads", "queries", "keys")}
HIDDEN = {2: ("batch", "width"), 3: ("batch", "length", "width")}
LOGITS = {1: ("classes",), 2: ("batch", "classes"), 3: ("batch", "length", "classes")}

Axes = dict[int, tuple[str, ...]]


def written(tensor: Tensor) -> str:
    """Return the shape as ``[2, 4, 8]``."""
    return str(list(tensor.shape))


_KEYS = {"student_features": "layer_S", "teacher_features": "layer_T"}
"""The key of a match or term that selects the layers of each input."""


def require_tensor(owner: str, side: str, value: object) -> Tensor:
    """Return ``value`` as one tensor.

    Raises: ``ShapeError`` for a tuple, which results from a list of layers.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Sequence):
        fix = f". Set {_KEYS[side]} to one layer, not a list" if side in _KEYS else ""
        raise ShapeError(f"{owner}: {side} must be one tensor, got a list of {len(value)}{fix}")
    raise ShapeError(f"{owner}: {side} must be a tensor, got {type(value).__name__}")


def require_pair(owner: str, side: str, value: object) -> tuple[Tensor, Tensor]:
    """Return ``value`` as two tensors of rank 3.

    Raises: ``ShapeError`` for a single tensor, any other number of tensors, or any other rank.
    """
    fix = f"Set {_KEYS.get(side, side)} to a list of two layers"
    if not isinstance(value, (list, tuple)):
        raise ShapeError(f"{owner}: {side} must be a list of 2 tensors, got {type(value).__name__}. {fix}")
    if len(value) != 2:
        raise ShapeError(f"{owner}: {side} must be a list of 2 tensors, got {len(value)}. {fix}")
    first, second = (require_tensor(owner, f"{side}[{i}]", tensor) for i, tensor in enumerate(value))
    for i, tensor in enumerate((first, second)):
        require_rank(owner, f"{side}[{i}]", tensor, (3,))
    require_axes(owner, (f"{side}[0]", first), (f"{side}[1]", second), ("batch", "length"))
    return first, second


def require_rank(owner: str, side: str, tensor: Tensor, ranks: Sequence[int]) -> None:
    """Raise ``ShapeError`` if the number of axes is none of ``ranks``."""
    if tensor.dim() not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise ShapeError(f"{owner}: {side} must have {wanted} axes, got {tensor.dim()}: {written(tensor)}")


def require_axes(owner: str, left: tuple[str, Tensor], right: tuple[str, Tensor], axes: Sequence[str]) -> None:
    """Compare the leading axes, which ``axes`` names, of two tensors, given with their parameter names.

    Raises: ``ShapeError`` that names both shapes and the first axis that differs.
    """
    for axis, have, want in zip(axes, left[1].shape, right[1].shape, strict=False):
        if have != want:
            raise ShapeError(
                f"{owner}: {left[0]} {written(left[1])} and {right[0]} {written(right[1])} differ on axis "
                f"'{axis}': {have} against {want}"
            )


def require_same(owner: str, student: Tensor, teacher: Tensor, names: tuple[str, str], axes: Axes) -> None:
    """Raise ``ShapeError`` if the two sides differ in rank or on any axis, or have no axes."""
    if student.shape == teacher.shape and student.dim():
        return
    left, right = names
    if student.dim() == 0:
        raise ShapeError(f"{owner}: {left} must have at least one axis, got a scalar")
    if student.dim() != teacher.dim():
        raise ShapeError(
            f"{owner}: {left} {written(student)} and {right} {written(teacher)} differ in rank: "
            f"{student.dim()} against {teacher.dim()}"
        )
    named = axes.get(student.dim()) or tuple(str(axis) for axis in range(student.dim()))
    require_axes(owner, (left, student), (right, teacher), named)


def one_pair(owner: str, student: object, teacher: object, axes: Axes) -> tuple[Tensor, Tensor]:
    """Return both sides of a match on single layers, each one tensor, equal in shape.

    Raises: ``ShapeError`` otherwise.
    """
    left = require_tensor(owner, "student_features", student)
    right = require_tensor(owner, "teacher_features", teacher)
    require_same(owner, left, right, ("student_features", "teacher_features"), axes)
    return left, right


_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def read_mask(owner: str, mask: Tensor, features: Tensor, items: torch.Size) -> Tensor:
    """Return the mask as bool on the device of ``features``. True or 1 means that the item counts.

    The engine passes bool masks. Checking the values of any other waits for its device; a compiled loss does not check.

    Raises: ``ShapeError`` if its shape is not ``items``; ``OutputsError`` if it holds other values.
    """
    if mask.shape != items:
        raise ShapeError(
            f"{owner}: the shape of mask, {written(mask)}, does not match the student's features {written(features)}: "
            f"it must be {list(items)}"
        )
    counts = mask.to(torch.bool)
    if mask.dtype is not torch.bool and not torch.compiler.is_compiling() and (mask != counts).any():
        found = mask[mask != counts][0].item()
        raise OutputsError(
            f"{owner}: a mask must contain only 0 and 1, or be bool, got {found:g}. Convert an extended attention "
            "mask, which is added to attention scores, with (mask == 0)"
        )
    return counts.to(features.device)


def bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask as integers of the width of ``dtype``: all bits set where it is True, none elsewhere."""
    return mask.to(_INTEGERS[dtype]).neg_()


def pairs(token_bits: Tensor) -> Tensor:
    """Return the valid pairs of tokens: ``[batch, length]`` to ``[batch, length, length]``."""
    return token_bits.unsqueeze(-1) & token_bits.unsqueeze(-2)


def keep_(values: Tensor, value_bits: Tensor) -> Tensor:
    """Set ``values`` to 0 where the bits are 0, in place, and return them.

    ``values`` must be a new tensor; the bits broadcast to it. A bitwise and with all ones or none selects like
    ``masked_fill_``, including ``nan``, but a CPU vectorizes it (three times as fast there).
    """
    values.view(_INTEGERS[values.dtype]).bitwise_and_(value_bits)
    return values


def kept(values: Tensor, value_bits: Tensor | None) -> Tensor:
    """Return a copy of ``values`` with 0 where the bits are 0, or ``values`` itself without bits."""
    if value_bits is None:
        return values
    return values.view(_INTEGERS[values.dtype]).bitwise_and(value_bits).view(values.dtype)
