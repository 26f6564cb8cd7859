"""Losses as they should be, for mutants to differ from in one thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdplug import LossSum, ShapeError
from kdplug.testing import BalancerLaws, LayerMapLaws, LossLaws, ProjectionLaws, SchedulerLaws, TeacherCombinerLaws
from kdplug.testing.law import Laws


def check(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> None:
    if student.shape != teacher.shape:
        raise ShapeError(f"student {list(student.shape)} and teacher {list(teacher.shape)} differ")
    if mask is not None and mask.shape != student.shape[:-1]:
        raise ShapeError(f"mask {list(mask.shape)} does not fit {list(student.shape)}")


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def tempered(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """The logits over the temperature, one for all or one per item."""
    return at_least_float32(logits) / (temperature[..., None] if isinstance(temperature, Tensor) else temperature)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) of each item; a class that p rules out adds nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def counted(per_item: Tensor, mask: Tensor | None) -> LossSum:
    if mask is None:
        return LossSum(per_item.sum(), per_item.numel())
    return LossSum(per_item.masked_fill(~mask, 0.0).sum(), mask.sum())


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float, mask: Tensor | None) -> LossSum:
    """Forward KL divergence times temperature squared."""
    check(student_logits, teacher_logits, mask)
    if mask is not None:
        student_logits = student_logits.masked_fill(~mask[..., None], 0.0)
        teacher_logits = teacher_logits.masked_fill(~mask[..., None], 0.0)
    log_q = tempered(student_logits, temperature).log_softmax(-1)
    log_p = tempered(teacher_logits.detach(), temperature).log_softmax(-1)
    return counted(divergence(log_q, log_p) * temperature**2, mask)


def hidden_mse(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """Mean squared error of each counted token."""
    check(student_features, teacher_features, mask)
    difference = at_least_float32(student_features) - at_least_float32(teacher_features.detach())
    if mask is not None:
        difference = difference.masked_fill(~mask[..., None], 0.0)
    return counted(difference.square().mean(-1), mask)


def correlation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """One less Pearson's correlation of the two sides' probabilities, mean over items."""
    check(student_logits, teacher_logits)
    centred = [
        at_least_float32(side).softmax(-1) - 1 / side.shape[-1] for side in (student_logits, teacher_logits.detach())
    ]
    student, teacher = (side / (torch.linalg.vector_norm(side, dim=-1, keepdim=True) + 1e-12) for side in centred)
    return (1 - (student * teacher).sum(-1)).mean()


def likelihood(student_features: Tensor, teacher_features: Tensor, log_variance: Tensor) -> LossSum:
    """Negative logarithm of a Gaussian likelihood, mean over tokens and channels."""
    check(student_features, teacher_features)
    square = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square()
    per_token = (log_variance + square / log_variance.exp()).mean(-1) / 2
    return LossSum(per_token.sum(), per_token.numel())


class Vid(nn.Module):
    """Variational information distillation: a Gaussian likelihood with a learned variance per channel."""

    def __init__(self, *, width: int = 6) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(width))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        return likelihood(student_features, teacher_features, self.log_variance)


class Bank(nn.Module):
    """Distance to a running mean of the teacher, kept in a buffer."""

    mean: Tensor

    def __init__(self, *, width: int = 6, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        check(student_features, teacher_features)
        new = at_least_float32(teacher_features.detach()).flatten(0, -2).mean(0)
        if self.training:
            self.mean.lerp_(new.to(self.mean.dtype), self.momentum)
        return (at_least_float32(student_features) - self.mean.clone()).square().mean()


def affine(in_dim: int, out_dim: int, *, bias: bool = True) -> nn.Module:
    """A linear layer."""
    return nn.Linear(in_dim, out_dim, bias=bias)


def cosine(progress: float, *, floor: float = 0.0) -> float:
    """From 1 to ``floor`` along a straight line."""
    return 1.0 - (1.0 - floor) * progress


def by_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, beta: float = 1.0) -> Tensor:
    """A higher temperature for items on which the student is surer than on average."""
    top = student_logits.detach().softmax(-1).amax(-1)
    return (temperature + beta * (top - top.mean())).clamp_min(0.1)


def sure(teacher_logits_list: Any, labels: Tensor, temperature: Tensor | float) -> Tensor:
    """The mean of the teachers' logits, each weighted by how sure it is of the label."""
    teachers = torch.stack([at_least_float32(logits.detach()) for logits in teacher_logits_list])
    index = labels.clamp_min(0).expand(teachers.shape[:-1])[..., None]
    surety = tempered(teachers, temperature).log_softmax(-1).gather(-1, index).nan_to_num(neginf=-1e9)
    weight = torch.where(labels[..., None] < 0, 0.0, surety).softmax(0)
    return torch.where(weight > 0, weight * teachers, 0.0).sum(0)


def nearest_depth(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Each layer learns from the one at the same relative depth."""
    return [(m, max(1, round(m * teacher_layers / student_layers))) for m in range(1, student_layers + 1)]


class KlLaws(LossLaws):
    non_negative = zero_at_equality = reaches_teacher = True
    ignores_impossible_classes = corrects_confident_mistakes = True
    t2 = True
    sums = True


class HiddenLaws(LossLaws):
    non_negative = zero_at_equality = True
    sums = True


class CorrelationLaws(LossLaws):
    non_negative = zero_at_equality = True


class VidLaws(LossLaws):
    trains = ("log_variance",)


class BankLaws(LossLaws):
    except_for = {"test_no_student_is_better_than_the_teacher_itself": "it pulls to the mean of the teacher"}  # noqa: RUF012


class AffineLaws(ProjectionLaws):
    pass


class FallingLaws(SchedulerLaws):
    at_start, at_end, direction = 1.0, 0.0, "falling"


class WarmthLaws(SchedulerLaws):
    keeps_the_mean = True


class SureLaws(TeacherCombinerLaws):
    symmetric = True


class Inverse(nn.Module):
    """Weights inversely proportional to a moving average of the values, with mean 1."""

    average: Tensor
    updates: Tensor

    def __init__(self, num_terms: int) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(num_terms))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def update(self, values: Tensor) -> Tensor:
        """Return the weights of the next step."""
        self.average.copy_(torch.where(self.updates > 0, 0.9 * self.average + 0.1 * values, values))
        self.updates.add_(1)
        inverse = 1 / self.average.clamp(min=1e-30)
        return inverse / inverse.mean()


class InverseLaws(BalancerLaws):
    symmetric = True


class NearestLaws(LayerMapLaws):
    reaches_the_top = covers_the_student = True


def laws_of(base: type[Laws], entry: Any, **declared: Any) -> type[Laws]:
    """The laws of ``base`` about another callable."""
    return type(f"{base.__name__}Of{getattr(entry, '__name__', 'It').title()}", (base,), {"entry": entry, **declared})


class LearnedTemperature(nn.Module):
    """The configured temperature times a learned factor for each item, with a running mean of it in a buffer."""

    mean: Tensor

    def __init__(self, *, classes: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * classes, 1)
        self.register_buffer("mean", torch.ones(()))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        inner = torch.cat([side.detach().softmax(-1) for side in (student_logits, teacher_logits)], -1)
        factor = 0.5 + self.inner(inner).squeeze(-1).sigmoid()
        self.mean.lerp_(factor.detach().mean(), 0.1)
        return temperature * (factor + self.mean.clone())


class LearnedLaws(SchedulerLaws):
    classes = 4
