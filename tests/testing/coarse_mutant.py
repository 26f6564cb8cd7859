"""Losses that declare ``coarsens`` and are something else on the categories of a sparse teacher."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import LossLaws, check, divergence, tempered
from torch import Tensor

from kdplug import LossSum, coarsens


class CoarseLaws(LossLaws):
    sums = True


@coarsens
def plain_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """Forward KL divergence times temperature squared, which stays one where classes are joined."""
    check(student_logits, teacher_logits)
    log_q, log_p = (tempered(side, temperature).log_softmax(-1) for side in (student_logits, teacher_logits.detach()))
    square = temperature**2
    values = divergence(log_q, log_p) * square
    return LossSum(values.sum(), values.numel())


def _probabilities(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float
) -> tuple[Tensor, Tensor]:
    sides = (student_logits, teacher_logits.detach())
    own, theirs = (tempered(side, temperature).softmax(-1) for side in sides)
    return own, theirs


@mutant(CoarseLaws, "test_with_every_class_known_it_is_the_loss_itself", "with every class known and an empty tail")
@coarsens
def divergence_over_the_number_of_classes(student_logits, teacher_logits, temperature) -> LossSum:
    total, count = plain_divergence(student_logits, teacher_logits, temperature)
    return LossSum(total / student_logits.shape[-1], count)


@mutant(CoarseLaws, "test_the_order_of_an_items_categories_does_not_matter", "are reordered")
@coarsens
def first_classes_count_more(student_logits, teacher_logits, temperature) -> LossSum:
    own, theirs = _probabilities(student_logits, teacher_logits, temperature)
    weight = torch.linspace(1.0, 0.1, own.shape[-1], dtype=own.dtype)
    values = ((own - theirs).square() * weight).sum(-1)
    return LossSum(values.sum(), values.numel())


@mutant(CoarseLaws, "test_on_categories_its_gradient_points_where_that_on_classes_does", "differ in direction")
@coarsens
def distance_of_sorted_probabilities(student_logits, teacher_logits, temperature) -> LossSum:
    own, theirs = _probabilities(student_logits, teacher_logits, temperature)
    values = (own.sort(-1).values - theirs.sort(-1).values).abs().sum(-1)
    return LossSum(values.sum(), values.numel())
