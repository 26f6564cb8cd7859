"""Reading a temperature: one number, or one for each item."""

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
    """The floating-point type that holds all inputs, 32 bits at least.

    Half precision cannot hold a count of elements above 65504, nor many sums.
    """
    if {tensor.dtype for tensor in tensors} == _SINGLE:
        return torch.float32
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in ``dtype``; asking first is several times cheaper than a cast that changes nothing."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def cut(teacher: Tensor) -> Tensor:
    """The teacher's side out of the graph, where it is in one."""
    return teacher.detach() if teacher.requires_grad else teacher


def promoted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in one working type, the teacher cut from the graph.

    The cast carries the student's gradient back to its own type.
    """
    dtype = working_type(student, teacher)
    return in_type(student, dtype), in_type(cut(teacher), dtype)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which ``torch.autocast`` leaves operations on the device of ``tensor`` alone."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


_SPARING = 1 << 21
"""Elements of a block that keeps temporary memory small: 8 MiB of float32."""

_CACHED = 1 << 18
"""Elements of a block that stays in a CPU's caches over several passes: 1 MiB of float32."""


SMALL = 1 << 16
"""Elements up to which starting an operation costs more than carrying it out."""


def is_small(tensor: Tensor) -> bool:
    """Whether few operations matter more than few passes over memory."""
    return tensor.numel() <= SMALL


def eager_on_cpu(tensor: Tensor) -> bool:
    """Whether operations run one by one on a CPU, where loops are cheap and reading a number waits for nobody."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def sparing_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis that cover it, small enough for temporary results not to count."""
    return _slices(tensor, _SPARING)


def cached_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis that cover it, small enough for several passes over each to run in the cache."""
    return _slices(tensor, _CACHED)


def _slices(tensor: Tensor, elements: int) -> Iterator[slice]:
    size = len(tensor)
    step = size
    if eager_on_cpu(tensor) and tensor.numel() > elements:
        step = elements * size // tensor.numel()
    return (slice(start, start + max(step, 1)) for start in range(0, max(size, 1), max(step, 1)))


def remember(ctx: Any, gradient: Tensor | None, inputs: tuple[Tensor | None, ...]) -> None:
    """Keep ``gradient`` for the first backward pass and ``inputs`` for another one.

    A compiled graph may not hold state of its own and saves the gradient in the ordinary way.
    """
    if torch.compiler.is_compiling():
        ctx.save_for_backward(gradient)
        return
    ctx.gradient = gradient
    ctx.save_for_backward(*inputs)


def recall(ctx: Any, factor: Tensor, again: Callable[..., Tensor]) -> Tensor:
    """``factor`` times the gradient; ``again(*inputs)`` is called where it was handed out before."""
    if torch.compiler.is_compiling():
        saved: Tensor = ctx.saved_tensors[0]
        return saved * factor
    held: Tensor | None = ctx.gradient
    ctx.gradient = None
    gradient = again(*ctx.saved_tensors) if held is None else held
    return gradient.mul_(factor)


def read_temperature(owner: str, temperature: Tensor | float, logits: Tensor) -> Tensor | float:
    """A number, or a tensor without a gradient that broadcasts to ``logits`` with 1 on the axis of the classes.

    A tensor is one element, or ``[*items]`` or ``[*items, 1]``, where any axis may be 1. Fewer axes are ambiguous:
    ``[batch]`` beside logits ``[batch, length, classes]`` would run along the length.

    Raises: ``ShapeError`` for any other shape; ``SettingError`` for a number that is not positive and finite.
    """
    if not isinstance(temperature, Tensor):
        if not 0.0 < temperature < math.inf:
            raise SettingError(f"{owner}: temperature must be a positive number, got {temperature!r}")
        return temperature
    values = temperature.detach().to(device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
    if values.numel() == 1 and logits.dim() >= values.dim() - 1:
        return values.reshape(())
    if values.dim() == logits.dim() - 1:
        values = values.unsqueeze(-1)
    wanted = (*logits.shape[:-1], 1)
    if values.dim() != logits.dim() or any(
        have not in (1, want) for have, want in zip(values.shape, wanted, strict=True)
    ):
        raise ShapeError(
            f"{owner}: temperature {written(temperature)} does not fit logits {written(logits)}: "
            f"it must be a number or {list(logits.shape[:-1])}, one for each item"
        )
    return values
