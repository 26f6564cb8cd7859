"""KD losses on logits: cross-entropy and squared error between temperature-softened outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug import LossSum, closed_form, coarsens, facts, takes_numbers
from kdplug_presets.cross_entropy import cross_entropy
from kdplug_presets.numerics import promoted, read_temperature
from kdplug_presets.shape import LOGITS, require_same, require_tensor
from kdplug_presets.squared_distance import squared_distance


def ce_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = False) -> Tensor:
    """Evaluate the closed form of ``ce``: the gradient is ``(q − p) / T``, times T² with ``t2``."""
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
    """Evaluate the closed form of ``mse``: the gradient is ``2 (s − t) / T²``, over the number of classes."""
    difference = student.sub_(teacher)
    _over(temperature, difference)
    values: Tensor = torch.linalg.vector_norm(difference, dim=-1).square_() / student.shape[-1]
    difference.mul_(2 / student.shape[-1]).div_(temperature)
    return values


def _over(temperature: Tensor | float, *logits: Tensor) -> None:
    if isinstance(temperature, Tensor) or temperature != 1:
        for one in logits:
            one.div_(temperature)


def _divided(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Return ``logits / temperature``. A class that is ruled out (``-inf``) gives a trained temperature no gradient."""
    if not isinstance(temperature, Tensor) or not temperature.requires_grad:
        return logits / temperature
    ruled_out = logits == -torch.inf
    return (logits.masked_fill(ruled_out, 0.0) / temperature).masked_fill(ruled_out, -torch.inf)


def _softened(
    owner: str, student: Tensor, teacher: Tensor, temperature: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return both sides divided by the temperature, as ``[items, classes]``, and the parsed temperature."""
    student = require_tensor(owner, "student_logits", student)
    teacher = require_tensor(owner, "teacher_logits", teacher)
    require_same(owner, student, teacher, ("student_logits", "teacher_logits"), LOGITS)
    temperature = read_temperature(owner, temperature, student)
    student, teacher = promoted(student, teacher)
    if isinstance(temperature, Tensor) or temperature != 1:
        student, teacher = _divided(student, temperature), _divided(teacher, temperature)
    if student.dim() == 2:
        return student, teacher, temperature
    rows = student.shape[:-1].numel(), student.shape[-1]
    return student.reshape(rows), teacher.reshape(rows), temperature


def _cross_entropy(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return ``cross_entropy``, through autograd if the teacher's side has the gradient of a trained temperature."""
    if not teacher.requires_grad:
        return cross_entropy(student, teacher, weight=weight)
    target = teacher.softmax(dim=-1)
    log_probs = student.log_softmax(dim=-1).clamp(min=torch.finfo(student.dtype).min)
    rows = -(target * torch.where(target > 0, log_probs, 0.0)).sum(dim=-1, keepdim=True)
    return (rows if weight is None else rows * weight).sum()


@closed_form(ce_rows)
@coarsens
def ce(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0, *, t2: bool = False
) -> LossSum:
    """Cross-entropy of the softened student under the softened teacher, in nats, mean over items.

    Its minimum is the teacher's entropy, not 0. A class that the teacher rules out (``-inf``) adds nothing. Gradients
    shrink with the squared temperature.

    Settings: ``t2`` multiplies by the squared temperature (per item if it is a tensor), so that the gradient scale does
    not depend on it.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Hinton et al. 2015, arXiv:1503.02531; TextBrewer ``kd_ce_loss``.
    """
    student, teacher, temperature = _softened("ce", student_logits, teacher_logits, temperature)
    if not t2:
        return LossSum(_cross_entropy(student, teacher), len(student))
    if not isinstance(temperature, Tensor) or temperature.dim() == 0:
        return LossSum(_cross_entropy(student, teacher) * temperature**2, len(student))
    weight = temperature.square().expand(*student_logits.shape[:-1], 1).reshape(-1, 1)
    return LossSum(_cross_entropy(student, teacher, weight), len(student))


@closed_form(mse_rows)
@facts(takes_scores=True)
@takes_numbers
def mse(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0) -> LossSum:
    """Squared error between logits divided by the temperature: mean over items of the mean over classes.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: TextBrewer ``kd_mse_loss``, arXiv:2002.12620.
    """
    student, teacher, _ = _softened("mse", student_logits, teacher_logits, temperature)
    if teacher.requires_grad:  # the gradient of a trained temperature
        return LossSum((student - teacher).square().sum(), student.numel())
    return LossSum(squared_distance(student, teacher), student.numel())
