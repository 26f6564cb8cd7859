"""Schedulers for weights, and for temperatures, which stay positive and have no gradient."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug_presets.numerics import promoted, read_temperature, without_autocast
from kdplug_presets.shape import LOGITS, require_same


def linear_decay(progress: float) -> float:
    """Decay linearly from 1 at the start of the run to 0 at its end. ``progress`` is clamped to [0, 1].

    Source: TextBrewer ``linear_decay_weight_scheduler``, arXiv:2002.12620.
    """
    return 1.0 - linear_growth(progress)


def linear_growth(progress: float) -> float:
    """Grow linearly from 0 at the start of the run to 1 at its end. ``progress`` is clamped to [0, 1].

    Source: TextBrewer ``linear_growth_weight_scheduler``, arXiv:2002.12620.
    """
    return min(max(progress, 0.0), 1.0)


def linear_warmup(progress: float, *, share: Annotated[float, Field(gt=0, le=1)]) -> float:
    """Grow linearly from 0 at the start of the run to 1 at the fraction ``share`` of it, then stay at 1.

    Settings: ``share``, the fraction of the run after which the weight is full: 20 of 240 epochs are 0.0833.
    Relations: ``linear_growth`` at ``share: 1``.

    Source: Zhao et al. 2022, arXiv:2203.08679; as in megvii-research/mdistiller, mdistiller/distillers/DKD.py, which counts
    whole epochs.
    """
    return min(linear_growth(progress) / share, 1.0)


MinTemperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def constant(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> Tensor | float:  # noqa: ARG001
    """Return the configured temperature. The logits are not read.

    Source: TextBrewer ``constant_temperature_scheduler``, arXiv:2002.12620.
    """
    return temperature


def _spread(
    owner: str, weights: Tensor, temperature: Tensor | float, logits: Tensor, *, beta: float, least: float
) -> Tensor:
    """Return ``temperature + beta · (mean(weights) - weights)``, at least ``least``."""
    start = read_temperature(owner, temperature, logits)
    if isinstance(start, Tensor) and start.dim() > 0:
        start = start.squeeze(-1)
    return (start + (weights.mean() - weights) * beta).clamp(min=least)


@torch.no_grad()
def flsw(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    *,
    beta: Annotated[float, Field(allow_inf_nan=False)],
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)],
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4,
    min_temperature: MinTemperature = 0.1,
) -> Tensor:
    """Focal-loss style: items whose student and teacher logits differ in direction get a lower temperature.

    ``w = (1 - cos)^gamma`` with ``eps`` added to lengths; the result is ``temperature + beta · (mean(w) - w)``, at
    least ``min_temperature``, so that no item's distribution is inverted. ``1 - cos`` is kept at or above 0 despite
    rounding. A class that either side rules out (``-inf``) is excluded from both.

    Settings: ``beta``, spread of the temperatures; ``gamma``, the exponent of ``1 - cos``; ``eps`` is added to lengths;
    ``min_temperature``, the lower bound.

    Shapes: logits ``[*items, classes]``; the result is ``[*items]``, its mean taken over all items.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Wen et al. 2019, arXiv:1911.07471 (as TextBrewer adapts it).
    """
    require_same("flsw", student_logits, teacher_logits, ("student_logits", "teacher_logits"), LOGITS)
    student, teacher = promoted(student_logits, teacher_logits)
    with without_autocast(student):
        ruled_out = student.isneginf() | teacher.isneginf()
        student, teacher = student.masked_fill(ruled_out, 0.0), teacher.masked_fill(ruled_out, 0.0)
        student = student / (torch.linalg.vector_norm(student, dim=-1, keepdim=True) + eps)
        teacher = teacher / (torch.linalg.vector_norm(teacher, dim=-1, keepdim=True) + eps)
        weights = (1.0 - (student * teacher).sum(dim=-1)).clamp(min=0.0).pow(gamma)
        return _spread("flsw", weights, temperature, student_logits, beta=beta, least=min_temperature)


@torch.no_grad()
def cwsm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    *,
    beta: Annotated[float, Field(allow_inf_nan=False)],
    min_temperature: MinTemperature = 0.1,
) -> Tensor:
    """Confidence-weighted: items on which the student is unsure get a lower temperature.

    ``w = 1 / (max softmax(student) + 0.001)``; the result is ``temperature + beta · (mean(w) - w)``, at least
    ``min_temperature``: with many classes ``w`` alone reaches 1000. The teacher's logits are not read.

    Settings: ``beta``, spread of the temperatures; ``min_temperature``, the lower bound.

    Shapes: logits ``[*items, classes]``; the result is ``[*items]``, its mean taken over all items.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive.
    Source: Wen et al. 2019, arXiv:1911.07471 (as TextBrewer adapts it).
    """
    require_same("cwsm", student_logits, teacher_logits, ("student_logits", "teacher_logits"), LOGITS)
    student, _ = promoted(student_logits, teacher_logits)
    with without_autocast(student):
        weights = (torch.softmax(student, dim=-1).amax(dim=-1) + 1e-3).reciprocal()
        return _spread("cwsm", weights, temperature, student_logits, beta=beta, least=min_temperature)
