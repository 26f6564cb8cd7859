"""Shared parts of divergences between softened distributions: reading logits and summing items."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from kdplug import LossSum, SettingError, ShapeError
from kdplug_logits.shape import require_logits, written


def working_type(*tensors: Tensor) -> torch.dtype:
    """Return the floating-point type that holds all inputs, float32 or wider."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def promoted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides in one working type, the teacher detached.

    The cast carries the student's gradient back to its own type. No loss here multiplies matrices, the one operation that
    autocast would run in half precision again.
    """
    if student.dtype is teacher.dtype is torch.float32:
        return student, teacher.detach()
    dtype = working_type(student, teacher)
    return student.to(dtype), teacher.detach().to(dtype)


def floor_of(dtype: torch.dtype) -> float:
    """Return a finite replacement for the logarithm of 0: its exponential is 0, and sums of a few of them are finite."""
    return torch.finfo(dtype).min / 8


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


def over_temperature(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Return ``logits / temperature``, or ``logits`` itself if the temperature is the number 1.

    A class that is ruled out (``-inf``) gives a trained temperature no gradient, where a plain division gives ``nan``.
    """
    if not isinstance(temperature, Tensor):
        return logits if temperature == 1 else logits / temperature
    if not temperature.requires_grad:
        return logits / temperature
    ruled_out = logits == -torch.inf
    return (logits.masked_fill(ruled_out, 0.0) / temperature).masked_fill(ruled_out, -torch.inf)


def times_squared(values: Tensor, temperature: Tensor | float) -> Tensor:
    """Multiply values per item by the squared temperature, each item's own if there are several.

    Shapes: values ``[*items]``, the temperature as ``read_temperature`` returns it.
    """
    if not isinstance(temperature, Tensor):
        return values if temperature == 1 else values * temperature**2
    return values * (temperature.squeeze(-1) if temperature.dim() else temperature).square()


def floored(log_probs: Tensor) -> Tensor:
    """Replace ``-inf`` in ``log_probs`` by a large finite number without gradient.

    The gradient of ``logaddexp`` of two infinities is not finite.
    """
    return log_probs.clamp(min=floor_of(log_probs.dtype))


def log_mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return ``log(share · e^first + (1 − share) · e^second)`` of ``floored`` log-probabilities; share within (0, 1)."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def log_total(log_probs: Tensor) -> Tensor:
    """Return ``logsumexp`` over the last axis: ``-inf``, with a gradient of 0, if every class has probability 0."""
    total = floored(log_probs).logsumexp(dim=-1)
    return total.masked_fill(total < floor_of(total.dtype) / 2, -torch.inf)


Terms = Callable[[Tensor, Tensor], Tensor]
"""Maps log-probabilities of student and teacher, ``[*items, classes]`` each, to the terms summed over the last axis."""


def tempered(
    owner: str, student_logits: Tensor, teacher_logits: Tensor | None, temperature: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return both sides divided by the temperature, in float32 or wider, the teacher detached; and the parsed temperature.

    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    """
    teacher_logits = require_logits(owner, student_logits, teacher_logits)
    temperature = read_temperature(owner, temperature, student_logits)
    student, teacher = promoted(student_logits, teacher_logits)
    return over_temperature(student, temperature), over_temperature(teacher, temperature), temperature


def within_support(student: Tensor, teacher: Tensor) -> Tensor:
    """Set student logits to ``-inf`` at the classes that the teacher rules out.

    For divergences that are infinite if the student gives such a class any probability. If that would leave the student
    no class, its logits become 0: the divergence is then infinite, with a gradient of 0. A student that rules out every
    class itself is not a distribution, and stays unchanged.
    """
    kept = student.masked_fill(teacher == -torch.inf, -torch.inf)
    some, shared = (side.amax(dim=-1, keepdim=True) > -torch.inf for side in (student, kept))
    return kept.masked_fill(some & ~shared, 0.0)


def divergence(
    owner: str,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    temperature: Tensor | float,
    terms: Terms,
    *,
    t2: bool,
    supported: bool = False,
) -> LossSum:
    """Return the sum over items and classes of ``terms`` of the softened log-probabilities, with the number of items.

    ``t2`` multiplies by the squared temperature; ``supported`` restricts the student to the classes that the teacher
    allows.
    """
    student, teacher, temperature = tempered(owner, student_logits, teacher_logits, temperature)
    if supported:
        student = within_support(student, teacher)
    found = terms(student.log_softmax(dim=-1), teacher.log_softmax(dim=-1))
    return LossSum(total(found, temperature, t2=t2), student.shape[:-1].numel())


def total(terms: Tensor, temperature: Tensor | float, *, t2: bool) -> Tensor:
    """Return the sum of ``terms`` ``[*items, classes]``, times the squared temperature with ``t2``.

    This needs one sum if the temperature is a number: on small logits, launching a second sum costs more than computing
    it.
    """
    if not t2:
        return terms.sum()
    if isinstance(temperature, Tensor) and temperature.dim():
        return times_squared(terms.sum(dim=-1), temperature).sum()
    return times_squared(terms.sum(), temperature)
