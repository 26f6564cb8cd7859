"""Defects of losses between features."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import HiddenLaws, at_least_float32, check, counted, hidden_mse

from kdplug import LossSum
from kdplug.testing import LossLaws


@mutant(HiddenLaws, "test_padding_that_is_not_finite_does_not_spread", "padding of nan gives the value nan")
def mask_multiplied(student_features, teacher_features, mask) -> LossSum:
    square = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square().mean(-1)
    check(student_features, teacher_features, mask)
    return LossSum(square.sum(), square.numel()) if mask is None else LossSum((square * mask).sum(), mask.sum())


@mutant(HiddenLaws, "test_padding_that_is_not_finite_does_not_spread", "gives a non-finite gradient")
def mask_selected_after_computing(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    size = torch.linalg.vector_norm(
        at_least_float32(student_features) - at_least_float32(teacher_features.detach()), dim=-1
    )
    return counted(size, mask)


@mutant(HiddenLaws, "test_padding_changes_nothing", "padding of 1e+06 changed the value by")
def padding_in_a_mean(student_features, teacher_features, mask) -> LossSum:
    mean = at_least_float32(teacher_features.detach()).nan_to_num(0, 0, 0).mean()
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total * (1 + mean), count)


@mutant(HiddenLaws, "test_longer_padding_changes_nothing", "padding to 7 tokens instead of 4 changed the value")
def divided_by_the_padded_length(student_features, teacher_features, mask) -> LossSum:
    total, _ = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total, student_features.shape[0] * student_features.shape[1])


@mutant(HiddenLaws, "test_a_mask_that_leaves_nothing_out_changes_nothing", "a mask that is True everywhere changed")
def negative_entries_as_padding_without_a_mask(student_features, teacher_features, mask):
    if mask is None:
        student_features, teacher_features = (
            side.masked_fill(side <= -1e-3, 0.0) for side in (student_features, teacher_features)
        )
    return hidden_mse(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_an_empty_mask_gives_zero", "a mask that is False everywhere should give 0, got nan")
def empty_mask_divided_by_zero(student_features, teacher_features, mask) -> LossSum:
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total / count, 1)


@mutant(
    HiddenLaws,
    "test_an_example_without_a_token_changes_nothing",
    "an example that consists of padding gives the value nan",
)
def divided_by_the_length_of_each_example(student_features, teacher_features, mask) -> LossSum:
    mask = torch.ones(student_features.shape[:-1], dtype=torch.bool) if mask is None else mask
    check(student_features, teacher_features, mask)
    difference = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square().mean(-1)
    return LossSum((difference.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).sum(), mask.shape[0])


@mutant(HiddenLaws, "test_a_batch_of_many_items_is_counted", "a large batch give 0 in float32")
def counts_in_half_precision(student_features, teacher_features, mask) -> LossSum:
    total, _ = hidden_mse(student_features, teacher_features, mask)
    mask = torch.ones(student_features.shape[:-1], dtype=torch.bool) if mask is None else mask
    dtype = torch.float16 if student_features.dtype is torch.float32 else student_features.dtype
    width = student_features.shape[-1]
    return LossSum(total * width, (mask.to(dtype)[..., None].expand_as(student_features)).sum())


@mutant(HiddenLaws, "test_a_batch_of_many_items_is_counted", "a batch of many items was not tried")
def pairs_of_all_examples(student_features, teacher_features, mask) -> LossSum:
    total, count = hidden_mse(student_features, teacher_features, mask)
    own = at_least_float32(student_features.nan_to_num(0, 0, 0)).flatten(1)
    return LossSum(total + (own @ own.mT).square().mean(), count)


@mutant(HiddenLaws, "test_float32_agrees_with_float64", "inputs of size 300 give inf in float32")
def squares_in_float16(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    dtype = torch.float16 if student_features.dtype is torch.float32 else student_features.dtype
    difference = (student_features - teacher_features.detach()).to(dtype)
    difference = difference if mask is None else difference.masked_fill(~mask[..., None], 0.0)
    return counted((difference * difference).mean(-1), mask)


@mutant(HiddenLaws, "test_float32_agrees_with_float64", "subtract before squaring")
def difference_of_large_squares(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    student, teacher = (
        side if mask is None else side.masked_fill(~mask[..., None], 0.0)
        for side in (student_features, teacher_features.detach())
    )
    student, teacher = student + 1e5, teacher + 1e5
    return counted((student.square() - 2 * student * teacher + teacher.square()).mean(-1), mask)


@mutant(HiddenLaws, "test_shapes_that_do_not_fit_are_an_error", "a teacher of size 1 but a student of 6 (axis 2)")
def broadcast_of_width_one(student_features, teacher_features, mask):
    teacher_features = teacher_features.expand(*teacher_features.shape[:-1], student_features.shape[-1])
    return hidden_mse(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_shapes_that_do_not_fit_are_an_error", "is broadcast without an error")
def broadcast_of_a_mask(student_features, teacher_features, mask):
    mask = None if mask is None else mask.expand(student_features.shape[:-1])
    return hidden_mse(student_features, teacher_features, mask)


@mutant(HiddenLaws, "test_it_takes_tensors_that_are_not_contiguous", "RuntimeError: view size is not compatible")
def view_of_a_transposed_feature(student_features, teacher_features, mask):
    check(student_features, teacher_features, mask)
    width = student_features.shape[-1]
    mask = None if mask is None else mask.reshape(-1)
    return hidden_mse(student_features.view(-1, width), teacher_features.view(-1, width), mask)


_WEIGHTS = torch.arange(1.0, 6.0, dtype=torch.float64)
"""A weight for each class that the laws draw."""


class WeighedLaws(LossLaws):
    shape = "pooled"
    sums = non_negative = zero_at_equality = True


def weighed(student_features, teacher_features, labels) -> LossSum:
    """Squared error of labelled examples, weighed by class."""
    check(student_features, teacher_features)
    square = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square().mean(-1)
    weight = _WEIGHTS.to(square.dtype)[labels.clamp(min=0)].masked_fill(labels < 0, 0.0)
    return LossSum((square * weight).sum(), (labels >= 0).sum())


@mutant(WeighedLaws, "test_items_without_a_label_stay_finite", "index -100 is out of bounds")
def minus_one_hundred_in_a_table(student_features, teacher_features, labels) -> LossSum:
    square = (student_features - teacher_features.detach()).square().mean(-1)
    return LossSum((square * _WEIGHTS[labels]).sum(), (labels >= 0).sum())


@mutant(WeighedLaws, "test_items_without_a_label_stay_finite", "items without a label (-100) give the value nan")
def features_divided_by_no_labels(student_features, teacher_features, labels) -> LossSum:
    total, count = weighed(student_features, teacher_features, labels)
    return LossSum(total / count, 1)
