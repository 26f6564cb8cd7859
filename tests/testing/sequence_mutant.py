"""Defects of losses on whole sequences."""

from __future__ import annotations

from testing.mutant import mutant
from testing.specimen import LossLaws, check, divergence, tempered
from torch import Tensor

import kdplug
from kdplug import LossSum


class SequenceLaws(LossLaws):
    non_negative = zero_at_equality = True


def steps(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Squared difference of the two sides' steps between neighbouring positions, ``[batch, length - 1]``."""
    own, theirs = (tempered(side, temperature) for side in (student_logits, teacher_logits.detach()))
    ruled_out = theirs.isinf()  # a class that the teacher rules out adds nothing
    return (own - theirs).masked_fill(ruled_out, 0.0).diff(dim=1).square().mean(-1)


@kdplug.whole_sequences
def slopes(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float, mask: Tensor) -> LossSum:
    """Squared difference of the steps between neighbouring positions, mean over pairs of positions."""
    check(student_logits, teacher_logits, mask)
    pairs = mask[:, 1:] & mask[:, :-1]
    return LossSum(steps(student_logits, teacher_logits, temperature).masked_fill(~pairs, 0.0).sum(), pairs.sum())


@kdplug.mean_over_items
@kdplug.whole_sequences
def mean_slopes(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """The sum over each sequence's pairs of positions, mean over sequences."""
    check(student_logits, teacher_logits, mask)
    pairs = mask[:, 1:] & mask[:, :-1]
    return steps(student_logits, teacher_logits, 1.0).masked_fill(~pairs, 0.0).sum(-1).mean()


@kdplug.coarsens
@kdplug.whole_sequences
def running_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float, mask: Tensor) -> LossSum:
    """Forward KL divergence, weighted by the number of positions so far, mean over positions."""
    check(student_logits, teacher_logits, mask)
    log_q, log_p = (tempered(side, temperature).log_softmax(-1) for side in (student_logits, teacher_logits.detach()))
    square = temperature**2
    values = divergence(log_q, log_p) * square * mask.cumsum(-1)
    return LossSum(values.masked_fill(~mask, 0.0).sum(), mask.sum())


@mutant(SequenceLaws, "test_more_places_that_do_not_count_change_nothing", "masked positions at the end changed the v")
@kdplug.whole_sequences
def divided_by_the_length(student_logits, teacher_logits, temperature, mask) -> LossSum:
    total, _ = slopes(student_logits, teacher_logits, temperature, mask)
    return LossSum(total, mask.numel())


@mutant(SequenceLaws, "test_more_places_that_do_not_count_change_nothing", "masked positions at the start changed")
@kdplug.whole_sequences
def without_the_first_place(student_logits, teacher_logits, temperature, mask) -> LossSum:
    return slopes(student_logits[:, 1:], teacher_logits[:, 1:], temperature, mask[:, 1:])


@mutant(SequenceLaws, "test_sequences_without_a_place_that_counts_stay_finite", "1 of 3 sequences fully masked")
@kdplug.whole_sequences
def divided_by_each_number_of_pairs(student_logits, teacher_logits, mask) -> LossSum:
    check(student_logits, teacher_logits, mask)
    pairs = mask[:, 1:] & mask[:, :-1]
    values = steps(student_logits, teacher_logits, 1.0).masked_fill(~pairs, 0.0).sum(-1) / mask.sum(-1)
    return LossSum(values.sum(), len(values))


@mutant(SequenceLaws, "test_a_declared_mean_or_sum_is_one_of_sequences", "whose items are sequences, but chunks of 1")
@kdplug.mean_over_items
@kdplug.whole_sequences
def declared_mean_over_pairs(student_logits, teacher_logits, mask) -> Tensor:
    return slopes(student_logits, teacher_logits, 1.0, mask).value


@mutant(
    SequenceLaws, "test_a_declared_mean_or_sum_is_one_of_sequences", "returns a LossSum, which needs no declaration"
)
@kdplug.mean_over_items
@kdplug.whole_sequences
def declared_mean_with_its_count(student_logits, teacher_logits, mask):
    return slopes(student_logits, teacher_logits, 1.0, mask)


@mutant(SequenceLaws, "test_one_temperature_per_place_is_taken", "gives a different value from one temperature of 3")
@kdplug.whole_sequences
def temperature_summed_over_a_sequence(student_logits, teacher_logits, temperature, mask) -> LossSum:
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.sum(-1, keepdim=True)
    return slopes(student_logits, teacher_logits, temperature, mask)


@mutant(SequenceLaws, "test_a_temperature_per_place_gets_its_gradient", "but finite differences give")
@kdplug.whole_sequences
def detached_temperature(student_logits, teacher_logits, temperature, mask) -> LossSum:
    fixed = temperature.detach() if isinstance(temperature, Tensor) else temperature
    return slopes(student_logits, teacher_logits, fixed, mask)
