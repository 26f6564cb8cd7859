"""Defects of losses between logits."""

from __future__ import annotations

from typing import Any

import torch
from testing.mutant import mutant
from testing.specimen import CorrelationLaws, KlLaws, LossLaws, check, correlation, counted, divergence, kl, tempered
from torch import Tensor

import kdplug
from kdplug import LossSum


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


@mutant(KlLaws, "test_it_is_zero_where_student_equals_teacher", "declared to be 0 if the student equals the teacher")
def cross_entropy_called_kl(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(-(log_p.exp() * log_q).sum(-1) * temperature**2, mask)


@mutant(KlLaws, "test_a_confident_mistake_is_corrected", "Is a softmax taken twice")
def double_softmax(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    again = log_q.exp().log_softmax(-1), log_p.exp().log_softmax(-1)
    return counted(divergence(*again) * temperature**2, mask)


@mutant(KlLaws, "test_training_on_it_reaches_the_teacher", "the total variation distance to the teacher is still")
def double_softmax_of_the_student(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(divergence(log_q.exp().log_softmax(-1), log_p) * temperature**2, mask)


@mutant(KlLaws, "test_a_class_that_the_teacher_rules_out_stays_finite", "teacher logit -inf gives the value inf")
def arguments_swapped(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    return counted(divergence(log_p, log_q) * temperature**2, mask)


@mutant(KlLaws, "test_a_confident_mistake_is_corrected", "are the arguments swapped")
def arguments_swapped_quietly(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits.clamp_min(-1e4), temperature, mask)
    return counted(divergence(log_p, log_q) * temperature**2, mask)


@mutant(KlLaws, "test_impossible_classes_change_nothing", "three more classes of probability 0 changed the value")
def mean_over_classes(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total / student_logits.shape[-1], count)


@mutant(KlLaws, "test_the_grouping_of_items_does_not_matter", "for the same 12 flattened items")
def mean_over_the_batch_and_not_over_tokens(student_logits, teacher_logits, temperature, mask) -> LossSum:
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).total, student_logits.shape[0])


@mutant(KlLaws, "test_any_split_of_the_batch_gives_the_whole", "the sums over parts of the batch give")
def mean_of_means(student_logits, teacher_logits, temperature, mask) -> LossSum:
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).value, 1)


@mutant(KlLaws, "test_a_sum_over_items_may_be_cut_between_any_two", "return a scalar if the loss compares items")
def over_the_largest_of_all_items(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    size = student_logits.nan_to_num(0.0, 0.0, 0.0).abs().max()
    return LossSum(total * (1 + size / (1 + size)), count)


@mutant(KlLaws, "test_the_order_of_tokens_does_not_matter", "Does the loss shift or drop a position?")
def last_position_dropped(student_logits, teacher_logits, temperature, mask):
    keep = slice(None, -1) if student_logits.dim() == 3 else slice(None)
    mask = mask if mask is None or mask.dim() == 1 else mask[:, keep]
    return kl(student_logits[:, keep], teacher_logits[:, keep], temperature, mask)


@mutant(KlLaws, "test_the_order_of_tokens_does_not_matter", "reordered in the same way")
def shift_by_one(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits, teacher_logits.roll(1, dims=1), temperature, mask)


@mutant(KlLaws, "test_the_order_of_examples_does_not_matter", "when the examples of student and teacher were")
def shift_by_one_along_the_batch(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits, teacher_logits.roll(1, dims=0), temperature, mask)


@mutant(KlLaws, "test_logits_of_ten_thousand_stay_finite", "logits of 1e4 give the value nan")
def logarithm_of_softmax(student_logits, teacher_logits, temperature, mask):
    log_q, log_p = softened(student_logits, teacher_logits, temperature, mask)
    q, p = log_q.exp(), log_p.exp()
    return counted((p * (p.log() - q.log())).sum(-1) * temperature**2, mask)


@mutant(KlLaws, "test_one_temperature_per_item_is_taken", "gives a different value from one temperature of 3")
def temperature_along_the_wrong_axis(student_logits, teacher_logits, temperature, mask):
    if isinstance(temperature, Tensor):
        temperature = temperature[..., : student_logits.shape[-1]].mean(0) * 2
    return kl(student_logits, teacher_logits, temperature, mask)


@mutant(KlLaws, "test_each_item_gets_its_own_temperature", "if each item is computed alone")
def temperatures_averaged(student_logits, teacher_logits, temperature, mask):
    mean = temperature.mean() * torch.ones_like(temperature) if isinstance(temperature, Tensor) else temperature
    return kl(student_logits, teacher_logits, mean, mask)


@mutant(KlLaws, "test_temperature_is_used", "requests temperature, but gives")
def temperature_forgotten(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits, teacher_logits, 1.0, mask)


@mutant(KlLaws, "test_gradient_never_reaches_the_teacher", "the gradient reaches the teacher")
def gradient_to_the_teacher(student_logits, teacher_logits, temperature, mask) -> LossSum:
    reached = (
        teacher_logits - teacher_logits.detach()
    ).nan_to_num().square().sum() + teacher_logits.nan_to_num().sum() * 1e-3
    return LossSum(kl(student_logits, teacher_logits, temperature, mask).total + reached, 1)


@mutant(KlLaws, "test_gradient_reaches_the_student", "gradient does not reach the student")
def student_detached(student_logits, teacher_logits, temperature, mask):
    return kl(student_logits.detach(), teacher_logits, temperature, mask)


@mutant(KlLaws, "test_gradient_agrees_with_finite_differences", "gradient does not match the value")
def factor_detached(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total * total.detach(), count)


@mutant(KlLaws, "test_torch_compile_traces_it_whole", "torch.compile cannot trace it without graph breaks")
def branch_on_a_value(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total if total.item() >= 0 else total * 0, count)


@mutant(KlLaws, "test_it_returns_a_finite_scalar", "returned a tensor of shape [3, 4]")
def value_per_item(student_logits, teacher_logits, temperature, mask):
    return divergence(*softened(student_logits, teacher_logits, temperature, mask))


@mutant(KlLaws, "test_its_inputs_are_not_modified", "modified its input in place: teacher")
def in_place_edit_of_the_teacher(student_logits, teacher_logits, temperature, mask):
    teacher_logits.sub_(teacher_logits.amax(-1, keepdim=True))
    return kl(student_logits, teacher_logits, temperature, mask)


@mutant(CorrelationLaws, "test_no_student_is_better_than_the_teacher_itself", "less (")
def sign_of_a_correlation_flipped(student_logits, teacher_logits):
    return 2 - correlation(student_logits, teacher_logits)


@mutant(CorrelationLaws, "test_it_is_never_negative", "is declared non-negative, but is -")
def correlation_itself(student_logits, teacher_logits):
    return correlation(student_logits, teacher_logits) - 1


@mutant(KlLaws, "test_no_items_at_all_give_zero", "logits of no items should give 0, got nan")
def mean_of_nothing(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, count = kl(student_logits, teacher_logits, temperature, mask)
    return LossSum(total / count, 1)


class DrawLaws(LossLaws):
    sums = True


def _thinned(student_logits: Tensor, teacher_logits: Tensor, kept: Tensor) -> LossSum:
    """A squared error over the classes that were drawn."""
    check(student_logits, teacher_logits)
    error = (student_logits - teacher_logits.detach()).square() * kept
    return LossSum(error.sum(), student_logits[..., 0].numel())


@mutant(DrawLaws, "test_its_draws_follow_the_draw_seed", "advances the global generator")
def drawn_from_the_global_generator(student_logits, teacher_logits, draw_seed):
    return _thinned(student_logits, teacher_logits, torch.rand(student_logits.shape[-1]) < 0.5)


@mutant(DrawLaws, "test_its_draws_follow_the_draw_seed", "requests draw_seed, but gives the same value for two seeds")
def drawn_alike_in_every_batch(student_logits, teacher_logits, draw_seed):
    generator = torch.Generator().manual_seed(0)
    return _thinned(student_logits, teacher_logits, torch.rand(student_logits.shape[-1], generator=generator) < 0.5)


@mutant(LossLaws, "test_a_declared_mean_or_sum_is_one", "declares mean_over_items, but chunks of 1")
@kdplug.mean_over_items
def root_declared_a_mean(student_logits, teacher_logits):
    """A mean over items only inside the root."""
    check(student_logits, teacher_logits, None)
    return (student_logits - teacher_logits.detach()).square().mean().sqrt()


@mutant(LossLaws, "test_a_declared_mean_or_sum_is_one", "declares sum_over_items, but chunks of 1")
@kdplug.sum_over_items
def mean_declared_a_sum(student_logits, teacher_logits):
    """A mean whose decorator says sum."""
    check(student_logits, teacher_logits, None)
    return (student_logits - teacher_logits.detach()).square().mean()


@mutant(
    LossLaws,
    "test_a_single_number_gets_a_gradient",
    "declares takes_numbers, but logits with one class get no gradient",
)
@kdplug.takes_numbers
def divergence_declared_for_numbers(student_logits, teacher_logits):
    """The softmax of one class is a constant."""
    check(student_logits, teacher_logits, None)
    log_q, log_p = student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@mutant(LossLaws, "test_a_declared_mean_or_sum_is_one", "declares mean_over_items, but chunks of")
@kdplug.mean_over_items
def labelled_mean_declared_a_mean(student_logits, teacher_logits, labels):
    """A mean over the items that have a label."""
    check(student_logits, teacher_logits, None)
    count = labels >= 0
    gap = (student_logits - teacher_logits.detach()).square().mean(-1)
    return (gap * count).sum() / count.sum().clamp(min=1)


@mutant(KlLaws, "test_a_trained_temperature_gets_its_gradient", "one temperature: its gradient is lost")
def temperature_detached(student_logits, teacher_logits, temperature, mask):
    temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
    return kl(student_logits, teacher_logits, temperature, mask)


@mutant(KlLaws, "test_a_trained_temperature_gets_its_gradient", "but finite differences give")
def teacher_detached_after_the_division(student_logits, teacher_logits, temperature, mask):
    check(student_logits, teacher_logits, mask)
    sides = student_logits, teacher_logits
    if mask is not None:
        sides = tuple(side.masked_fill(~mask[..., None], 0.0) for side in sides)
    log_q, log_p = (tempered(side, temperature).log_softmax(-1) for side in sides)
    return counted(divergence(log_q, log_p.detach()) * temperature**2, mask)
