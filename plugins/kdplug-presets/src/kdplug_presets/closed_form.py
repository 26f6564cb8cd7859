"""Closed forms of the losses on logits: values of a few rows, whose student logits become their gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def ce_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = False) -> Tensor:
    """Closed form of ``ce``: the gradient is ``(q − p) / T``, times T² with ``t2``."""
    _over(temperature, student, teacher)
    target = teacher.softmax(dim=-1)
    log_probs = student.log_softmax(dim=-1).clamp_(min=torch.finfo(student.dtype).min)
    values: Tensor = torch.linalg.vecdot(target, log_probs).neg_()
    torch.sub(log_probs.exp_(), target, out=student)
    if not t2:
        student.div_(temperature)
        return values
    student.mul_(temperature)
    return values * (temperature.squeeze(-1) if isinstance(temperature, Tensor) else temperature) ** 2


def mse_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
    """Closed form of ``mse``: the gradient is ``2 (s − t) / T²``, over the number of classes."""
    difference = student.sub_(teacher)
    _over(temperature, difference)
    values: Tensor = torch.linalg.vector_norm(difference, dim=-1).square_() / student.shape[-1]
    difference.mul_(2 / student.shape[-1]).div_(temperature)
    return values


def _over(temperature: Tensor | float, *logits: Tensor) -> None:
    if isinstance(temperature, Tensor) or temperature != 1:
        for one in logits:
            one.div_(temperature)
