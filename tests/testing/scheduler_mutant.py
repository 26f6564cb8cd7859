"""Defects of schedulers."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import FallingLaws, LearnedLaws, LearnedTemperature, WarmthLaws, by_entropy
from torch import Tensor


@mutant(FallingLaws, "test_the_weight_depends_on_progress_alone", "on a second call")
class CountingItsCalls:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, progress: float) -> float:
        self.calls += 1
        return max(0.0, 1 - self.calls / 100)


@mutant(FallingLaws, "test_the_weight_moves_one_way", "is declared falling, but goes from")
def growth_for_decay(progress):
    return progress


@mutant(FallingLaws, "test_the_weight_starts_and_ends_as_declared", "ends at 0.05, but 0 is declared")
def off_by_one_step(progress, total_steps):
    return 1 - progress * (total_steps - 1) / total_steps


@mutant(FallingLaws, "test_the_weight_is_never_negative", "a negative weight would maximize the loss")
def past_its_end(progress):
    return 1 - 2 * progress


@mutant(FallingLaws, "test_the_weight_is_a_finite_number_throughout", "a weight must be a finite Python number")
def weight_as_a_tensor(progress):
    return torch.tensor(1 - progress)


@mutant(WarmthLaws, "test_each_item_gets_a_positive_temperature", "1000 classes: the temperature is -")
def not_clamped(student_logits, teacher_logits, temperature):
    weights = 1 / (student_logits.detach().softmax(-1).amax(-1) + 1e-3)
    return temperature + weights.mean() - weights


@mutant(WarmthLaws, "test_each_item_gets_a_positive_temperature", "student equal to teacher: the temperature is nan")
def root_of_a_rounding_error(student_logits, teacher_logits, temperature):
    student, teacher = (
        side.detach() / side.detach().norm(dim=-1, keepdim=True) for side in (student_logits, teacher_logits)
    )
    weights = (1 - 1e-12 - (student * teacher).sum(-1)).pow(0.5)
    return (temperature + weights.mean() - weights).clamp_min(0.1)


@mutant(WarmthLaws, "test_the_temperature_carries_no_gradient", "has a gradient with respect to")
def temperature_that_is_learned(student_logits, teacher_logits, temperature):
    return temperature + student_logits.softmax(-1).amax(-1)


@mutant(WarmthLaws, "test_the_mean_temperature_is_the_configured_one", "for a configured temperature of 8")
def not_centred(student_logits, teacher_logits, temperature):
    return temperature + student_logits.detach().softmax(-1).amax(-1)


@mutant(WarmthLaws, "test_temperatures_follow_their_items", "do not get their temperatures in the same order")
def temperature_of_the_neighbour(student_logits, teacher_logits, temperature):
    return by_entropy(student_logits, teacher_logits, temperature).roll(1, dims=0)


@mutant(WarmthLaws, "test_logits_are_not_modified", "modified the logits in place")
def normalized_in_place(student_logits, teacher_logits, temperature):
    student_logits.detach().sub_(student_logits.detach().amax(-1, keepdim=True))
    return by_entropy(student_logits, teacher_logits, temperature)


@mutant(
    WarmthLaws,
    "test_the_configured_temperature_is_used",
    "gives the same result for configured temperatures of 4 and 8",
)
def temperature_of_its_own(student_logits, teacher_logits, temperature):
    return by_entropy(student_logits, teacher_logits, 4.0)


@mutant(WarmthLaws, "test_a_class_that_the_teacher_rules_out_stays_finite", "a class with teacher logit -inf")
def norm_of_minus_infinity(student_logits, teacher_logits, temperature):
    teacher = teacher_logits.detach() / teacher_logits.detach().norm(dim=-1, keepdim=True).clamp_min(1e-3)
    return by_entropy(student_logits, teacher_logits, temperature) + 0 * teacher.sum(-1)


@mutant(LearnedLaws, "test_its_parameters_are_trained", "gradient does not reach parameter inner.weight")
class FactorDetached(LearnedTemperature):
    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        return super().forward(student_logits, teacher_logits, temperature).detach()


@mutant(LearnedLaws, "test_its_parameters_are_trained", "a parameter does not require a gradient")
class FactorFrozen(LearnedTemperature):
    def __init__(self, *, classes: int = 4) -> None:
        super().__init__(classes=classes)
        self.inner.bias.requires_grad_(False)


@mutant(LearnedLaws, "test_its_parameters_are_trained", "has tensors in plain attributes: factor. Derive the class")
class FactorOfNoModule:
    def __init__(self) -> None:
        self.factor = torch.nn.Parameter(torch.ones(()))

    def __call__(self, temperature: float) -> Tensor:
        return temperature * self.factor


@mutant(LearnedLaws, "test_a_loaded_state_gives_the_same_temperature", "keep all state in buffers")
class MeanThatIsNotSaved(LearnedTemperature):
    def __init__(self, *, classes: int = 4) -> None:
        super().__init__(classes=classes)
        self.register_buffer("mean", torch.ones(()), persistent=False)


@mutant(LearnedLaws, "test_the_temperature_carries_no_gradient", "has a gradient with respect to the student's logits")
class LogitsNotDetached(LearnedTemperature):
    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        factor = super().forward(student_logits, teacher_logits, temperature)
        return factor + student_logits.softmax(-1).amax(-1)
