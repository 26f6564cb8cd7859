"""Working precision, block sizes and temperature parsing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from kdplug import SettingError, ShapeError
from kdplug_presets.shape import written

_SINGLE = {torch.float32}


def working_type(*tensors: Tensor) -> torch.dtype:
    """Return the floating-point type that holds all inputs, float32 or wider.

    Half precision cannot represent a count above 65504, nor many sums.
    """
    if {tensor.dtype for tensor in tensors} == _SINGLE:
        return torch.float32
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast the tensor to ``dtype``; checking first is several times cheaper than a no-op cast."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def cut(teacher: Tensor) -> Tensor:
    """Detach the teacher's tensor if it requires gradient."""
    return teacher.detach() if teacher.requires_grad else teacher


def promoted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides in one working type, the teacher detached.

    The cast carries the student's gradient back to its own type.
    """
    dtype = working_type(student, teacher)
    return in_type(student, dtype), in_type(cut(teacher), dtype)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which ``torch.autocast`` does not affect the device of ``tensor``."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


_SPARING = 1 << 21
"""Elements of a block that keeps temporary memory small: 8 MiB of float32."""

_CACHED = 1 << 18
"""Elements of a block that stays in a CPU's caches over several passes: 1 MiB of float32."""


def eager_on_cpu(tensor: Tensor) -> bool:
    """Return whether operations run eagerly on a CPU, where loops are cheap and reading a number does not wait."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def sparing_blocks(tensor: Tensor) -> Iterator[slice]:
    """Yield slices of the first axis that cover it, so small that temporary results need little memory."""
    return _slices(tensor, _SPARING)


def cached_blocks(tensor: Tensor) -> Iterator[slice]:
    """Yield slices of the first axis that cover it, small enough to stay in the cache over several passes."""
    return _slices(tensor, _CACHED)


def _slices(tensor: Tensor, elements: int) -> Iterator[slice]:
    size = len(tensor)
    step = size
    if eager_on_cpu(tensor) and tensor.numel() > elements:
        step = elements * size // tensor.numel()
    return (slice(start, start + max(step, 1)) for start in range(0, max(size, 1), max(step, 1)))


def remember(ctx: Any, gradient: Tensor | None, inputs: tuple[Tensor | None, ...]) -> None:
    """Store ``gradient`` for the first backward pass and ``inputs`` for a second one.

    A compiled graph may not hold its own state, so it saves the gradient with autograd.
    """
    if torch.compiler.is_compiling():
        ctx.save_for_backward(gradient)
        return
    ctx.gradient = gradient
    ctx.save_for_backward(*inputs)


def recall(ctx: Any, factor: Tensor, again: Callable[..., Tensor]) -> Tensor:
    """Return ``factor`` times the gradient; recompute it with ``again(*inputs)`` if it was already consumed."""
    if torch.compiler.is_compiling():
        saved: Tensor = ctx.saved_tensors[0]
        return saved * factor
    held: Tensor | None = ctx.gradient
    ctx.gradient = None
    gradient = again(*ctx.saved_tensors) if held is None else held
    return gradient.mul_(factor)


def read_temperature(owner: str, temperature: Tensor | float, logits: Tensor) -> Tensor | float:
    """Return a number, or a tensor that broadcasts to ``logits`` with 1 on the class axis and keeps its gradient.

    A tensor has one element, or is ``[*items]`` or ``[*items, 1]``, where any axis may be 1. Fewer axes are ambiguous:
    ``[batch]`` with logits ``[batch, length, classes]`` would be broadcast along the length.

    Raises: ``ShapeError`` for any other shape; ``SettingError`` for a number that is not positive and finite.
    """
    if not isinstance(temperature, Tensor):
        if not 0.0 < temperature < math.inf:
            raise SettingError(f"{owner}: temperature must be a positive finite number, got {temperature!r}")
        return temperature
    values = temperature.to(device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
    if values.numel() == 1 and logits.dim() >= values.dim() - 1:
        return values.reshape(())
    if values.dim() == logits.dim() - 1:
        values = values.unsqueeze(-1)
    wanted = (*logits.shape[:-1], 1)
    if values.dim() != logits.dim() or any(
        have not in (1, want) for have, want in zip(values.shape, wanted, strict=True)
    ):
        raise ShapeError(
            f"{owner}: the shape of temperature, {written(temperature)}, does not match logits {written(logits)}. "
            f"Use a number, or a tensor of shape {list(logits.shape[:-1])} with one temperature per item"
        )
    return values
