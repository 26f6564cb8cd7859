"""Each loss as its plainest formula, in float64, item by item and class by class where that is clearer.

Logits are ``[items, classes]`` and finite; a temperature is a number or ``[items]``. A result is the mean that the loss
should give, a float64 scalar that autograd can go through. Nothing here comes from the package.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each item's logits, flattened to a list of rows, with its temperature, in float64."""
    student, teacher = student.double(), teacher.double().detach()
    degrees = torch.as_tensor(temperature, dtype=torch.float64).expand(student.shape[:-1]).reshape(-1)
    flat = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    return list(zip(*flat, degrees, strict=True))


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return sum((f * (f / s).log() for f, s in zip(first, second, strict=True) if f > 0), start=torch.zeros(()))


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    return _mean(
        [t**2 * _kl((p / t).softmax(0), (q / t).softmax(0)) for q, p, t in rows(student, teacher, temperature)]
    )


def reverse_kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    return _mean(
        [t**2 * _kl((q / t).softmax(0), (p / t).softmax(0)) for q, p, t in rows(student, teacher, temperature)]
    )
