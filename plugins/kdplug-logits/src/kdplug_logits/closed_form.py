"""What closed forms of divergences have in common: each is a formula on softened rows, called on what it may overwrite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdplug_logits.tempering import times_squared

Careful = Callable[[Tensor, Tensor], Tensor]
"""Values ``[n]`` of tempered rows ``[n, classes]``; their gradient is written over the student's."""

Quick = Callable[[Tensor, Tensor], Tensor | None]
"""As ``Careful``, of rows whose largest logit is 0. ``None``, with both sides unchanged, where a value is not finite."""


def closed(
    quick: Quick,
    careful: Careful,
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    *,
    t2: bool,
    factor: float = 1.0,
) -> Tensor:
    """Values ``[n]``, and their gradient over ``student``, from a formula for rows over the temperature.

    ``quick`` ignores classes that one side rules out (``-inf``); where its values are not finite, ``careful`` runs. Off a CPU
    ``careful`` runs at once, since checking values would wait for the device. The largest logit of each row is subtracted
    before ``quick``, which takes differences of logits: float32 keeps few digits of these where the logits are far from 0.
    What the formula gives as gradient is ``1 / factor`` of it.
    """
    values: Tensor | None = None
    if student.device.type == "cpu":
        from_largest_(student, teacher)
        temper_(temperature, student, teacher)
        values = quick(student, teacher)
    else:
        temper_(temperature, student, teacher)
    if values is None:
        values = careful(student, teacher)
    return scaled(values, student, temperature, t2=t2, factor=factor)


def scaled(values: Tensor, student: Tensor, temperature: Tensor | float, *, t2: bool, factor: float = 1.0) -> Tensor:
    """Values and gradient of tempered rows as those of the rows themselves, with the squared temperature where ``t2`` says so."""
    slope = temperature * factor if t2 else factor / temperature
    if isinstance(slope, Tensor) or slope != 1:
        student.mul_(slope)
    return times_squared(values, temperature) if t2 else values


def from_largest_(*logits: Tensor) -> None:
    """Subtract from each row its largest logit. A row whose largest is not finite becomes ``nan``: it is no distribution."""
    for one in logits:
        one.sub_(one.amax(dim=-1, keepdim=True))


def temper_(temperature: Tensor | float, *logits: Tensor) -> None:
    """Divide logits by the temperature. Multiplying takes half of the time that dividing does."""
    if isinstance(temperature, Tensor) or temperature != 1:
        for one in logits:
            one.mul_(1 / temperature)


def softmax_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of rows whose largest logit is 0, and the logarithm of their sum of exponentials, ``[n, 1]``.

    In little more than half of the time that ``softmax`` takes, which looks for the largest logit itself.
    """
    probs = logits.exp()
    sums = probs.sum(dim=-1, keepdim=True)
    return probs.mul_(1 / sums), sums.log_()


def mean_of(probs: Tensor, values: Tensor) -> Tensor:
    """``Σ probs · values`` over the classes, ``[n, 1]``."""
    means: Tensor = torch.linalg.vecdot(probs, values)
    return means.unsqueeze(-1)


def entropy_of(probs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``Σ probs (first − second)`` over the classes, ``[n, 1]``, where a class without probability adds nothing."""
    return (probs * torch.where(probs > 0, first - second, 0.0)).sum(dim=-1, keepdim=True)


def from_slope_(student: Tensor, probs: Tensor, slope: Tensor) -> None:
    """Write the gradient of a divergence over the student's tempered logits, from its derivative by the student's probability.

    ``slope`` may be off by a constant in each row, which the softmax takes away; it is overwritten.
    """
    torch.mul(probs, slope.sub_(mean_of(probs, slope)), out=student)
