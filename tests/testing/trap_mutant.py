"""Traps of published methods: a divisor, a temperature, a layer or a share that is nearly right, and state outside the module."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from testing.mutant import mutant
from testing.specimen import (
    Bank,
    BankLaws,
    KlLaws,
    LossLaws,
    Vid,
    VidLaws,
    at_least_float32,
    check,
    counted,
    divergence,
    hidden_mse,
    kl,
    likelihood,
    tempered,
)
from torch import Tensor, nn
from torch.nn import functional

from kdplug import LossSum, facts

ORACLE = "test_it_agrees_with_its_oracle"
TRAINED = "test_every_parameter_is_trained"


def exact_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: Any, mask: Tensor | None) -> Tensor:
    """T squared times KL divergence, mean over items."""
    p, q = ((side / temperature).softmax(-1) for side in (teacher_logits, student_logits))
    per_item = temperature**2 * (p * (p / q).log()).sum(-1)
    return per_item.mean() if mask is None else per_item[mask].mean()


def exact_mse(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> Tensor:
    """Squared error, mean over counted tokens and the width."""
    error = (student_features - teacher_features) ** 2
    return error.mean() if mask is None else error[mask].mean()


class ExactKlLaws(KlLaws):
    oracle = staticmethod(exact_kl)


class ExactHiddenLaws(LossLaws):
    sums = non_negative = True
    oracle = staticmethod(exact_mse)


@mutant(ExactKlLaws, ORACLE, "0.2 times as much")
def divided_by_the_classes(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total / student_logits.shape[-1], count)


@mutant(ExactKlLaws, ORACLE, "its oracle gives")
def divided_by_the_batch_alone(student_logits, teacher_logits, temperature, mask) -> LossSum:
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).total, student_logits.shape[0])


@mutant(ExactHiddenLaws, ORACLE, "6 times as much")
def summed_over_the_width(student_features, teacher_features, mask) -> LossSum:
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total * student_features.shape[-1], count)


@mutant(ExactHiddenLaws, ORACLE, "its oracle gives")
def divided_by_the_batch_too(student_features, teacher_features, mask) -> LossSum:
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total / student_features.shape[0], count)


@mutant(ExactHiddenLaws, ORACLE, "but its gradient is off by")
def value_with_half_the_gradient(student_features, teacher_features, mask) -> LossSum:
    half = student_features / 2
    return hidden_mse(half + half.detach(), teacher_features, mask)


def _softened(student_logits: Tensor, teacher_logits: Tensor, own: Any, theirs: Any, mask: Any) -> Tensor:
    check(student_logits, teacher_logits, mask)
    sides = student_logits, teacher_logits.detach()
    if mask is not None:
        sides = tuple(side.masked_fill(~mask[..., None], 0.0) for side in sides)
    return divergence(tempered(sides[0], own).log_softmax(-1), tempered(sides[1], theirs).log_softmax(-1))


@mutant(KlLaws, "test_temperature_scales_it_as_declared", "temperature 3 should give 9 times the value at 1")
def temperature_of_the_student_alone(student_logits, teacher_logits, temperature, mask):
    return counted(_softened(student_logits, teacher_logits, temperature, 1.0, mask) * temperature**2, mask)


@mutant(ExactKlLaws, ORACLE, "powers of the temperature")
def temperature_not_squared(student_logits, teacher_logits, temperature, mask):
    return counted(_softened(student_logits, teacher_logits, temperature, temperature, mask) * temperature, mask)


def exact_targets(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: Any) -> Tensor:
    """T squared times the cross-entropy of the label's class alone, mean over items."""
    p, q = ((side / temperature).softmax(-1) for side in (teacher_logits, student_logits))
    at = labels[..., None]
    return (-(temperature**2) * p.gather(-1, at) * q.gather(-1, at).log()).mean()


class TargetLaws(LossLaws):
    sums = True
    t2 = True
    oracle = staticmethod(exact_targets)
    except_for = {"test_no_student_is_better_than_the_teacher_itself": "it pulls to the label"}


def _targets(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: Any, used: Any) -> LossSum:
    check(student_logits, teacher_logits)
    log_q, log_p = (tempered(side, used).log_softmax(-1) for side in (student_logits, teacher_logits.detach()))
    at = labels.clamp_min(0)[..., None]
    per_item = -(log_p.gather(-1, at).exp() * log_q.gather(-1, at))[..., 0] * temperature**2
    return LossSum(per_item.masked_fill(labels < 0, 0.0).sum(), (labels >= 0).sum())


def targets(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: Any) -> LossSum:
    """Cross-entropy of the label's class."""
    return _targets(student_logits, teacher_logits, labels, temperature, temperature)


@mutant(TargetLaws, ORACLE, "powers of the temperature")
def target_without_temperature(student_logits, teacher_logits, labels, temperature):
    return _targets(student_logits, teacher_logits, labels, temperature, 1.0)


@mutant(TargetLaws, "test_items_without_a_label_stay_finite", "items without a label (-100) give the value nan")
def divided_by_no_labels(student_logits, teacher_logits, labels, temperature) -> LossSum:
    total, count = targets(student_logits, teacher_logits, labels, temperature)
    return LossSum(total / count, 1)


class LayerLaws(LossLaws):
    layers = 2
    sums = non_negative = zero_at_equality = True
    oracle = staticmethod(
        lambda student_features, teacher_features: sum(
            (one - two).square().mean() for one, two in zip(student_features, teacher_features, strict=True)
        )
    )


def layer_by_layer(student_features: Any, teacher_features: Any) -> LossSum:
    """Squared error of each layer with its own, summed over layers."""
    found = [hidden_mse(one, two, None) for one, two in zip(student_features, teacher_features, strict=True)]
    return LossSum(torch.stack([one.total for one in found]).sum(), found[0].count)


@mutant(LayerLaws, ORACLE, "its oracle gives")
def every_layer_with_the_mean_of_the_list(student_features, teacher_features) -> LossSum:
    mean = torch.stack(list(teacher_features)).mean(0)
    return layer_by_layer(student_features, [mean] * len(teacher_features))


@mutant(LayerLaws, ORACLE, "0.5 times as much")
def divided_by_the_layers(student_features, teacher_features) -> LossSum:
    total, count = layer_by_layer(student_features, teacher_features)
    return LossSum(total / len(student_features), count)


class ProjectedLaws(LossLaws):
    layers = 2
    may_differ = (-1,)
    trains = ("projections.0.weight", "projections.1.weight")


class Projected(nn.Module):
    """Squared error of each layer after a projection of its own."""

    own_parameters = True

    def __init__(self, in_dim: list[int], out_dim: list[int]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(self.make(in_dim, out_dim))

    def make(self, in_dim: list[int], out_dim: list[int]) -> list[nn.Module]:
        return [nn.Linear(*widths, bias=False) for widths in zip(in_dim, out_dim, strict=True)]

    def forward(self, student_features: Any, teacher_features: Any) -> LossSum:
        """Compute the loss."""
        projected = [make(one) for make, one in zip(self.projections, student_features, strict=True)]
        return layer_by_layer(projected, teacher_features)


@mutant(ProjectedLaws, TRAINED, "projections.1.weight is declared as trained, but is not a parameter")
class OneProjectionForAllLayers(Projected):
    def make(self, in_dim, out_dim):
        return [nn.Linear(in_dim[0], out_dim[0], bias=False)] * len(in_dim)


class SharedLaws(ProjectedLaws):
    trains = ("projection.weight",)


class Shared(nn.Module):
    """Squared error of each layer after one projection for all (as in TinyBERT)."""

    own_parameters = True

    def __init__(self, in_dim: list[int], out_dim: list[int]) -> None:
        super().__init__()
        self.projection = nn.Linear(in_dim[0], out_dim[0], bias=False)

    def forward(self, student_features: Any, teacher_features: Any) -> LossSum:
        """Compute the loss."""
        return layer_by_layer([self.projection(one) for one in student_features], teacher_features)


@mutant(SharedLaws, TRAINED, "projection.weight is declared as trained, but is not a parameter")
class AProjectionForEachLayer(Projected):
    pass


class EmbeddedLaws(LossLaws):
    shape = "pooled"
    trains = ("embed.weight",)
    oracle = staticmethod(
        lambda student_features, teacher_features, embed_weight: (
            (student_features @ embed_weight.T - teacher_features).square().mean()
        )
    )


class Embedded(nn.Module):
    """Squared error after an embedding of the student alone (as in ICKD)."""

    own_parameters = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Compute the loss."""
        return hidden_mse(self.embed(student_features), teacher_features, None)


@mutant(EmbeddedLaws, ORACLE, "its oracle gives")
class EmbedsBothSides(Embedded):
    own_parameters = True

    def forward(self, student_features, teacher_features) -> LossSum:
        return hidden_mse(self.embed(student_features), self.embed(teacher_features).detach(), None)


class NormalizedLaws(LossLaws):
    sums = zero_at_equality = True


def normalized(student_features: Tensor, teacher_features: Tensor) -> LossSum:
    """Squared distance of normalized features."""
    check(student_features, teacher_features)
    sides = (at_least_float32(side) for side in (student_features, teacher_features.detach()))
    return hidden_mse(*(functional.normalize(side, dim=-1) for side in sides), None)


@mutant(
    NormalizedLaws, "test_it_is_zero_where_student_equals_teacher", "declared to be 0 if the student equals the teacher"
)
def one_side_normalized(student_features, teacher_features) -> LossSum:
    return hidden_mse(functional.normalize(student_features, dim=-1), teacher_features, None)


class MaskedLaws(LossLaws):
    settings = {"masked": 0.0}
    sums = True
    except_for = {
        "test_it_draws_if_it_says_so_and_not_otherwise": "it masks nothing at 0",
        "test_its_draws_follow_the_draw_seed": "it masks nothing at 0",
    }
    oracle = staticmethod(
        lambda student_features, teacher_features: exact_mse(student_features, teacher_features, None)
    )


def _covered(student_features: Tensor, teacher_features: Tensor, draw_seed: int, kept: float) -> LossSum:
    check(student_features, teacher_features)
    generator = torch.Generator().manual_seed(draw_seed)
    mask = torch.rand(student_features.shape[:-1], generator=generator) < kept
    return hidden_mse(torch.where(mask[..., None], student_features, 0.0), teacher_features, None)


@facts(random=True)
def covered(student_features: Tensor, teacher_features: Tensor, draw_seed: int, *, masked: float = 0.5) -> LossSum:
    """Squared error after a share of the student's tokens is masked (as in MGD)."""
    return _covered(student_features, teacher_features, draw_seed, 1 - masked)


@mutant(MaskedLaws, ORACLE, "its oracle gives")
def masked_share_taken_for_the_kept_one(student_features, teacher_features, draw_seed, *, masked: float = 0.5):
    return _covered(student_features, teacher_features, draw_seed, masked)


REGISTERED = "test_it_is_a_module_whose_tensors_are_registered"


@mutant(VidLaws, REGISTERED, "log_variance is a plain tensor. Register it in __init__ as an nn.Parameter")
class VarianceAsAPlainTensor(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        del self.log_variance
        self.log_variance = torch.zeros(width, dtype=torch.float64, requires_grad=True)


@mutant(VidLaws, REGISTERED, "variances is a plain container of tensors")
class VariancesInAList(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.variances = [torch.zeros(width, dtype=torch.float64, requires_grad=True)]

    def forward(self, student_features, teacher_features) -> LossSum:
        return likelihood(student_features, teacher_features, self.variances[0] + self.log_variance)


@mutant(VidLaws, REGISTERED, "heads is a plain container of modules")
class HeadsInAList(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.heads = [nn.Linear(width, width)]


@mutant(VidLaws, REGISTERED, "made is a plain tensor")
class VarianceMadeInForward(Vid):
    def forward(self, student_features, teacher_features) -> LossSum:
        if not hasattr(self, "made"):
            self.made = torch.zeros(student_features.shape[-1], dtype=student_features.dtype, requires_grad=True)
        return likelihood(student_features, teacher_features, self.made + self.log_variance)


@mutant(BankLaws, REGISTERED, "bank is a plain container of tensors")
class BankInADeque(Bank):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.bank: deque[Tensor] = deque(maxlen=8)

    def forward(self, student_features, teacher_features) -> Tensor:
        self.bank.append(teacher_features.detach().flatten(0, -2).mean(0))
        return super().forward(student_features, teacher_features)


@mutant(BankLaws, "test_a_copy_and_a_loaded_state_go_on_alike", "a module that loaded the state_dict gives")
class BankOfANumber(Bank):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.calls = 0

    def forward(self, student_features, teacher_features) -> Tensor:
        self.calls += 1
        return super().forward(student_features, teacher_features) * self.calls


_OUTSIDE = torch.zeros(6, dtype=torch.float64, requires_grad=True)


@mutant(VidLaws, "test_it_trains_its_parameters_alone", "for a tensor that is not one of its parameters. Register it")
class VarianceOfThePythonModule(Vid):
    def forward(self, student_features, teacher_features) -> LossSum:
        return likelihood(student_features, teacher_features, _OUTSIDE + self.log_variance)


@mutant(ExactHiddenLaws, "test_it_trains_its_parameters_alone", "for a tensor that is not one of its parameters")
def function_with_a_learned_scale(student_features, teacher_features, mask):
    return hidden_mse(student_features * (1 + _OUTSIDE[0]), teacher_features, mask)


class RememberingLaws(LossLaws):
    shape = "pooled"
    sums = non_negative = zero_at_equality = True

    @staticmethod
    def oracle(student_features, teacher_features, mean, seen):  # type: ignore[no-untyped-def]
        to_mean = (student_features - mean).square() if seen else torch.zeros(())
        return ((student_features - teacher_features).square() + to_mean).mean()


class Remembering(nn.Module):
    """Squared error to the teacher, and to its mean over the last batch."""

    mean: Tensor
    seen: Tensor
    weight = 1.0

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(out_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Compute the loss."""
        check(student_features, teacher_features)
        student, teacher = at_least_float32(student_features), at_least_float32(teacher_features.detach())
        to_mean = torch.where(self.seen.clone(), (student - self.mean.clone().to(student.dtype)).square(), 0.0)
        error = ((student - teacher).square() + self.weight * to_mean).mean(-1)
        if self.training:
            self.mean.copy_(teacher.mean(0))
            self.seen.fill_(True)
        return LossSum(error.sum(), error.numel())


@mutant(RememberingLaws, ORACLE, "after a call in training, but its oracle gives")
class MemoryTimesNothing(Remembering):
    weight = 0.0
