"""Known defects of other toolkits, planted one by one: a law, by name, catches each; the right version keeps every law."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from pydantic import Field
from testing.specimen import (
    AffineLaws,
    Bank,
    BankLaws,
    CorrelationLaws,
    FallingLaws,
    HiddenLaws,
    KlLaws,
    Vid,
    VidLaws,
    WarmthLaws,
    affine,
    at_least_float32,
    by_entropy,
    check,
    correlation,
    cosine,
    counted,
    divergence,
    hidden_mse,
    kl,
    laws_of,
    likelihood,
    tempered,
)
from torch import Tensor, nn

from kdplug import LossSum
from kdplug.testing import broken_laws, law_names
from kdplug.testing.law import Laws

MUTANTS: dict[str, tuple[type[Laws], Any, str, str]] = {}
"""Defect to the laws it is put under, the callable, the law that must catch it, and words of the law's message."""


def mutant(laws: type[Laws], law: str, words: str) -> Any:
    """Decorator of a defect."""

    def put(target: Any) -> Any:
        target.__doc__ = target.__doc__ or "A mutant."
        MUTANTS[target.__name__] = (laws, target, law, words)
        return target

    return put


def softened(student_logits: Tensor, teacher_logits: Tensor, temperature: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides."""
    check(student_logits, teacher_logits, mask)
    sides = student_logits, teacher_logits.detach()
    if mask is not None:
        sides = tuple(side.masked_fill(~mask[..., None], 0.0) for side in sides)
    return tuple(tempered(side, temperature).log_softmax(-1) for side in sides)


@mutant(KlLaws, "test_temperature_scales_it_as_declared", "temperature 3 should give 9 times the value at 1")
def no_temperature_squared(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(divergence(log_q, log_p), mask)


@mutant(KlLaws, "test_it_is_zero_where_student_equals_teacher", "declared 0 where the student equals the teacher")
def cross_entropy_called_kl(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(-(log_p.exp() * log_q).sum(-1) * temperature**2, mask)


@mutant(KlLaws, "test_a_confident_mistake_is_corrected", "Is a softmax taken twice")
def double_softmax(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    again = log_q.exp().log_softmax(-1), log_p.exp().log_softmax(-1)
    return counted(divergence(*again) * temperature**2, mask)


@mutant(KlLaws, "test_training_on_it_reaches_the_teacher", "away from the teacher's distribution")
def double_softmax_of_the_student(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(divergence(log_q.exp().log_softmax(-1), log_p) * temperature**2, mask)


@mutant(KlLaws, "test_a_class_that_the_teacher_rules_out_stays_finite", "teacher logit -inf makes the value inf")
def arguments_swapped(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(divergence(log_p, log_q) * temperature**2, mask)


@mutant(KlLaws, "test_a_confident_mistake_is_corrected", "are the arguments swapped")
def arguments_swapped_quietly(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits.clamp_min(-1e4), temperature, mask)
    return counted(divergence(log_p, log_q) * temperature**2, mask)


@mutant(KlLaws, "test_impossible_classes_change_nothing", "three more classes of no probability changed the value")
def mean_over_classes(student_logits, teacher_logits, temperature, mask):
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total / student_logits.shape[-1], count)


@mutant(KlLaws, "test_the_grouping_of_items_does_not_matter", "for the same 12 items in a row")
def mean_over_the_batch_and_not_over_tokens(student_logits, teacher_logits, temperature, mask):
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).total, student_logits.shape[0])


@mutant(KlLaws, "test_any_split_of_the_batch_gives_the_whole", "sums over pieces give")
def mean_of_means(student_logits, teacher_logits, temperature, mask):
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).value, 1)


@mutant(KlLaws, "test_the_order_of_tokens_does_not_matter", "Does it shift or drop a position?")
def last_position_dropped(student_logits, teacher_logits, temperature, mask):
    keep = slice(None, -1) if student_logits.dim() == 3 else slice(None)
    mask = mask if mask is None or mask.dim() == 1 else mask[:, keep]
    return kl(student_logits[:, keep], teacher_logits[:, keep], temperature, mask)


@mutant(KlLaws, "test_the_order_of_tokens_does_not_matter", "in another order, alike on both sides")
def shift_by_one(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits, teacher_logits.roll(1, dims=1), temperature, mask)


@mutant(KlLaws, "test_the_order_of_examples_does_not_matter", "when the examples of student and teacher were put")
def shift_by_one_along_the_batch(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits, teacher_logits.roll(1, dims=0), temperature, mask)


@mutant(KlLaws, "test_logits_of_ten_thousand_stay_finite", "logits of 1e4 make the value nan")
def logarithm_of_softmax(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    q, p = log_q.exp(), log_p.exp()
    return counted((p * (p.log() - q.log())).sum(-1) * temperature**2, mask)


@mutant(KlLaws, "test_one_temperature_per_item_is_taken", "is not the same as one temperature of 3")
def temperature_along_the_wrong_axis(student_logits, teacher_logits, temperature, mask):
    if isinstance(temperature, Tensor):
        temperature = temperature[..., : student_logits.shape[-1]].mean(0) * 2
    return kl(student_logits, teacher_logits, temperature, mask)


@mutant(KlLaws, "test_each_item_gets_its_own_temperature", "item by item")
def temperatures_averaged(student_logits, teacher_logits, temperature, mask):
    mean = temperature.mean() * torch.ones_like(temperature) if isinstance(temperature, Tensor) else temperature
    return kl(student_logits, teacher_logits, mean, mask)


@mutant(KlLaws, "test_temperature_is_used", "asks for temperature, and is")
def temperature_forgotten(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits, teacher_logits, 1.0, mask)


@mutant(KlLaws, "test_gradient_never_reaches_the_teacher", "gradient reached the teacher")
def gradient_to_the_teacher(student_logits, teacher_logits, temperature, mask):
    reached = (
        teacher_logits - teacher_logits.detach()
    ).nan_to_num().square().sum() + teacher_logits.nan_to_num().sum() * 1e-3
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).total + reached, 1)


@mutant(KlLaws, "test_gradient_reaches_the_student", "gradient does not reach the student")
def student_detached(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits.detach(), teacher_logits, temperature, mask)


@mutant(KlLaws, "test_gradient_agrees_with_finite_differences", "gradient is not that of the value")
def factor_detached(student_logits, teacher_logits, temperature, mask):
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total * total.detach(), count)


@mutant(KlLaws, "test_torch_compile_traces_it_whole", "torch.compile cannot trace it whole")
def branch_on_a_value(student_logits, teacher_logits, temperature, mask):
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total if total.item() >= 0 else total * 0, count)


@mutant(KlLaws, "test_it_returns_a_finite_scalar", "returned a tensor of shape [3, 4]")
def value_per_item(student_logits, teacher_logits, temperature, mask):
    return divergence(*softened(student_logits, teacher_logits, temperature, mask))


@mutant(KlLaws, "test_its_inputs_are_not_modified", "modified its input in place: teacher")
def in_place_edit_of_the_teacher(student_logits, teacher_logits, temperature, mask):
    teacher_logits.sub_(teacher_logits.amax(-1, keepdim=True))
    return kl(student_logits, teacher_logits, temperature, mask)


@mutant(HiddenLaws, "test_padding_that_is_not_finite_does_not_spread", "padding of nan makes the value nan")
def mask_multiplied(student_features, teacher_features, mask):
    square = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square().mean(-1)
    check(student_features, teacher_features, mask)
    return LossSum(square.sum(), square.numel()) if mask is None else LossSum((square * mask).sum(), mask.sum())


@mutant(HiddenLaws, "test_padding_that_is_not_finite_does_not_spread", "makes the gradient not finite")
def mask_selected_after_computing(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    size = torch.linalg.vector_norm(
        at_least_float32(student_features) - at_least_float32(teacher_features.detach()), dim=-1
    )
    return counted(size, mask)


@mutant(HiddenLaws, "test_padding_changes_nothing", "padding of 1e+06 changed the value by")
def padding_in_a_mean(student_features, teacher_features, mask):
    mean = at_least_float32(teacher_features.detach()).nan_to_num(0, 0, 0).mean()
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total * (1 + mean), count)


@mutant(HiddenLaws, "test_longer_padding_changes_nothing", "padding to 7 tokens instead of 4 changed the value")
def divided_by_the_padded_length(student_features, teacher_features, mask):
    total, _ = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total, student_features.shape[0] * student_features.shape[1])


@mutant(HiddenLaws, "test_a_mask_that_leaves_nothing_out_changes_nothing", "a mask that is True everywhere changed")
def negative_entries_as_padding_without_a_mask(student_features, teacher_features, mask):
    if mask is None:
        student_features, teacher_features = (
            side.masked_fill(side <= -1e-3, 0.0) for side in (student_features, teacher_features)
        )
    return hidden_mse(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_an_empty_mask_gives_zero", "a mask that is False everywhere should give 0 and gives nan")
def empty_mask_divided_by_zero(student_features, teacher_features, mask):
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total / count, 1)


@mutant(
    HiddenLaws, "test_an_example_without_a_token_changes_nothing", "an example of padding alone makes the value nan"
)
def divided_by_the_length_of_each_example(student_features, teacher_features, mask):
    mask = torch.ones(student_features.shape[:-1], dtype=torch.bool) if mask is None else mask
    check(student_features, teacher_features, mask)
    difference = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square().mean(-1)
    return LossSum((difference.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).sum(), mask.shape[0])


@mutant(HiddenLaws, "test_a_float16_batch_of_many_items_is_counted", "a large batch under float16 autocast give")
def counts_in_half_precision(student_features, teacher_features, mask):
    total, _ = hidden_mse(student_features, teacher_features, mask)
    mask = torch.ones(student_features.shape[:-1], dtype=torch.bool) if mask is None else mask
    width = student_features.shape[-1]
    return LossSum(total * width, (mask.to(student_features.dtype)[..., None].expand_as(student_features)).sum())


@mutant(HiddenLaws, "test_float16_autocast_agrees_with_float32", "under float16 autocast give inf")
def no_autocast_protection(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    difference = student_features - teacher_features.detach()
    difference = difference if mask is None else difference.masked_fill(~mask[..., None], 0.0)
    return counted((difference * difference).mean(-1), mask)


@mutant(HiddenLaws, "test_bfloat16_autocast_agrees_with_float32", "Compute in float32")
def no_bfloat16_protection(student_features, teacher_features, mask):
    return no_autocast_protection(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_shapes_that_do_not_fit_are_an_error", "a teacher of size 1 where the student has 6 (axis 2)")
def broadcast_of_width_one(student_features, teacher_features, mask):
    teacher_features = teacher_features.expand(*teacher_features.shape[:-1], student_features.shape[-1])
    return hidden_mse(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_shapes_that_do_not_fit_are_an_error", "is no error, but broadcast")
def broadcast_of_a_mask(student_features, teacher_features, mask):
    mask = None if mask is None else mask.expand(student_features.shape[:-1])
    return hidden_mse(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_it_takes_tensors_that_are_not_contiguous", "RuntimeError: view size is not compatible")
def view_of_a_transposed_feature(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    width = student_features.shape[-1]
    mask = None if mask is None else mask.reshape(-1)
    return hidden_mse(student_features.view(-1, width), teacher_features.view(-1, width), mask)


@mutant(CorrelationLaws, "test_no_student_is_better_than_the_teacher_itself", "less (")
def sign_of_a_correlation_flipped(student_logits, teacher_logits):
    return 2 - correlation(student_logits, teacher_logits)


@mutant(CorrelationLaws, "test_it_is_never_negative", "was declared non-negative, and is -")
def correlation_itself(student_logits, teacher_logits):
    return correlation(student_logits, teacher_logits) - 1


@mutant(VidLaws, "test_every_parameter_is_trained", "log_variance was declared to be trained, and is no parameter")
class VarianceAsABuffer(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        del self.log_variance
        self.register_buffer("log_variance", torch.zeros(width))


@mutant(VidLaws, "test_every_parameter_is_trained", "gradient does not reach parameter log_variance")
class VarianceDetached(Vid):
    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        return likelihood(student_features, teacher_features, self.log_variance.detach())


@mutant(VidLaws, "test_every_parameter_is_trained", "log_variance does not require gradient")
class VarianceNotTrainable(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.log_variance.requires_grad_(False)


@mutant(BankLaws, "test_it_is_a_module_whose_tensors_are_registered", "mean is a plain tensor")
class BankAsAnAttribute(Bank):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        del self.mean
        self.mean = torch.zeros(width)


@mutant(BankLaws, "test_a_copy_and_a_loaded_state_go_on_alike", "one that loaded its state_dict gives")
class BankThatIsNotSaved(Bank):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.register_buffer("mean", torch.zeros(width), persistent=False)


@mutant(HiddenLaws, "test_its_settings_have_a_schema_and_valid_defaults", "the default of setting 'alpha' is not valid")
def default_out_of_bounds(student_features, teacher_features, mask, *, alpha: Annotated[float, Field(le=1)] = 2.0):
    return hidden_mse(student_features, teacher_features, mask)


@mutant(AffineLaws, "test_it_brings_the_students_width_to_the_teachers", "RuntimeError")
def widths_swapped(in_dim, out_dim):
    return nn.Linear(out_dim, in_dim)


SHARED = {widths: nn.Linear(*widths).double() for widths in AffineLaws.widths}


@mutant(AffineLaws, "test_two_projections_share_nothing", "share modules or parameters")
def one_module_for_every_match(in_dim, out_dim):
    return SHARED[in_dim, out_dim]


@mutant(AffineLaws, "test_each_token_is_projected_on_its_own", "changed the projection of the others")
class NormalizedOverTheBatch(nn.Module):
    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, feature):
        found = self.linear(feature)
        return found - found.mean(0, keepdim=True)


@mutant(AffineLaws, "test_gradient_reaches_the_student_and_every_parameter", "gradient does not reach parameter unused")
class WithALayerThatIsNeverUsed(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)
        self.unused = nn.Parameter(torch.zeros(1))


@mutant(AffineLaws, "test_its_input_is_not_modified", "modified the student's feature in place")
class ActivationInPlace(nn.Linear):
    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)

    def forward(self, feature):
        return super().forward(feature.relu_() if not feature.requires_grad else feature.relu())


class Counting:
    """A schedule that counts its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, progress: float) -> float:
        self.calls += 1
        return max(0.0, 1 - self.calls / 100)


MUTANTS["schedule_that_counts_its_calls"] = (
    FallingLaws, Counting, "test_the_weight_depends_on_progress_alone", "when asked again",
)  # fmt: skip


@mutant(FallingLaws, "test_the_weight_moves_one_way", "was declared falling, and goes from")
def growth_for_decay(progress):
    return progress


@mutant(FallingLaws, "test_the_weight_starts_and_ends_as_declared", "ends at 0.05, and was declared to at 0")
def off_by_one_step(progress, total_steps):
    return 1 - progress * (total_steps - 1) / total_steps


@mutant(FallingLaws, "test_the_weight_is_never_negative", "the student would be driven away")
def past_its_end(progress):
    return 1 - 2 * progress


@mutant(FallingLaws, "test_the_weight_is_a_finite_number_throughout", "a weight is a finite Python number")
def weight_as_a_tensor(progress):
    return torch.tensor(1 - progress)


@mutant(WarmthLaws, "test_each_item_gets_a_positive_temperature", "1000 classes give a temperature of -")
def not_clamped(student_logits, teacher_logits, temperature):
    weights = 1 / (student_logits.detach().softmax(-1).amax(-1) + 1e-3)
    return temperature + weights.mean() - weights


@mutant(WarmthLaws, "test_each_item_gets_a_positive_temperature", "student equal to teacher give a temperature of nan")
def root_of_a_rounding_error(student_logits, teacher_logits, temperature):
    student, teacher = (
        side.detach() / side.detach().norm(dim=-1, keepdim=True) for side in (student_logits, teacher_logits)
    )
    weights = (1 - 1e-12 - (student * teacher).sum(-1)).pow(0.5)
    return (temperature + weights.mean() - weights).clamp_min(0.1)


@mutant(WarmthLaws, "test_the_temperature_carries_no_gradient", "carries gradient")
def temperature_that_is_learned(student_logits, teacher_logits, temperature):
    return temperature + student_logits.softmax(-1).amax(-1)


@mutant(WarmthLaws, "test_the_mean_temperature_is_the_configured_one", "for a configured temperature of 8")
def not_centred(student_logits, teacher_logits, temperature):
    return temperature + student_logits.detach().softmax(-1).amax(-1)


@mutant(WarmthLaws, "test_temperatures_follow_their_items", "do not get their temperatures in that order")
def temperature_of_the_neighbour(student_logits, teacher_logits, temperature):
    return by_entropy(student_logits, teacher_logits, temperature).roll(1, dims=0)


RIGHT = {
    "kl": (KlLaws, kl),
    "hidden_mse": (HiddenLaws, hidden_mse),
    "correlation": (CorrelationLaws, correlation),
    "Vid": (VidLaws, Vid),
    "Bank": (BankLaws, Bank),
    "affine": (AffineLaws, affine),
    "cosine": (FallingLaws, cosine),
    "by_entropy": (WarmthLaws, by_entropy),
}


@pytest.mark.parametrize("defect", MUTANTS)
def test_a_law_catches(defect: str) -> None:
    base, target, law, words = MUTANTS[defect]
    laws = laws_of(base, target)
    assert law in law_names(laws)
    assert words in broken_laws(laws, only=[law]).get(law, "nothing: the law holds")


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_version_keeps_every_law(name: str) -> None:
    base, target = RIGHT[name]
    assert broken_laws(laws_of(base, target)) == {}


def test_an_oracle_catches_what_no_declared_property_does() -> None:
    def oracle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
        return (student_features - teacher_features).square().mean()

    def halved(student_features: Tensor, teacher_features: Tensor, mask: Any) -> LossSum:
        """Half the squared error."""
        total, count = hidden_mse(student_features, teacher_features, mask)
        return LossSum(total / 2, count)

    assert (
        "its oracle says" in broken_laws(laws_of(HiddenLaws, halved, oracle=oracle))["test_it_agrees_with_its_oracle"]
    )


def test_a_loss_without_a_docstring_is_caught() -> None:
    def bare(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return correlation(student_logits, teacher_logits)

    assert "has no docstring" in broken_laws(laws_of(CorrelationLaws, bare))["test_it_has_a_docstring"]
