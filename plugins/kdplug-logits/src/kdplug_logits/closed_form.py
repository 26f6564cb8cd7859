"""What closed forms of divergences have in common: each is a formula on softened rows, called on what it may overwrite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdplug_logits.tempering import times_squared

Formula = Callable[[Tensor, Tensor], Tensor]
"""Values ``[n]`` of tempered rows ``[n, classes]``; the gradient is written over the student's, once the values are finite."""


def closed(
    formula: Formula,
    careful: Formula | None,
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    *,
    t2: bool,
) -> Tensor:
    """Values ``[n]``, and their gradient over ``student``, from a formula for rows over the temperature.

    ``formula`` takes no heed of classes that one side rules out (``-inf``) and gives values that are not finite there, with
    both sides as they were. Then ``careful`` is asked. Off a CPU it is asked at once, since a look at values waits. Where it
    is ``None``, ``formula`` takes heed itself.
    """
    if isinstance(temperature, Tensor) or temperature != 1:
        student.div_(temperature)
        teacher.div_(temperature)
    values = formula(student, teacher) if careful is None or student.device.type == "cpu" else None
    if values is None or (careful is not None and not values.isfinite().all()):
        assert careful is not None
        values = careful(student, teacher)
    if t2:
        student.mul_(temperature)
        return times_squared(values, temperature)
    student.div_(temperature)
    return values


def log_sums(logits: Tensor, probs: Tensor) -> Tensor:
    """``logsumexp`` of rows whose softmax is at hand, ``[n, 1]``: two looks for a maximum instead of exponentials."""
    return logits.amax(dim=-1, keepdim=True) - probs.amax(dim=-1, keepdim=True).log()


def mean_of(probs: Tensor, values: Tensor) -> Tensor:
    """``Σ probs · values`` over the classes, ``[n, 1]``."""
    return torch.linalg.vecdot(probs, values).unsqueeze(-1)


def entropy_of(probs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``Σ probs (first − second)`` over the classes, ``[n, 1]``, where a class without probability adds nothing."""
    return (probs * torch.where(probs > 0, first - second, 0.0)).sum(dim=-1, keepdim=True)


def from_slope_(student: Tensor, probs: Tensor, slope: Tensor) -> None:
    """Write the gradient of a divergence over the student's tempered logits, from its derivative by the student's probability.

    ``slope`` may be off by a constant in each row, which the softmax takes away; it is overwritten.
    """
    torch.mul(probs, slope.sub_(mean_of(probs, slope)), out=student)
