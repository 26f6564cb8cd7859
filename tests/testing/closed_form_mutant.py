"""Defects of closed forms, of a loss that is right."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import LossLaws, divergence, tempered
from torch import Tensor

from kdplug import LossSum, closed_form


class ClosedLaws(LossLaws):
    non_negative = zero_at_equality = True
    sums = True


def plain_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """Forward KL divergence times temperature squared."""
    log_q, log_p = (tempered(side, temperature).log_softmax(-1) for side in (student_logits, teacher_logits.detach()))
    values = divergence(log_q, log_p) * temperature**2
    return LossSum(values.sum(), values.numel())


def right_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    student.copy_((log_q.exp() - log_p.exp()) * temperature)
    square = temperature.squeeze(-1) ** 2 if isinstance(temperature, Tensor) else temperature**2
    return divergence(log_q, log_p) * square


def _with(rows):
    """The loss above with another closed form."""

    def loss(student_logits, teacher_logits, temperature):
        return plain_kl(student_logits, teacher_logits, temperature)

    loss.__name__ = rows.__name__
    return closed_form(rows)(loss)


@mutant(ClosedLaws, "test_its_closed_form_is_the_loss", "the gradient of the closed form is off by")
@_with
def slope_of_temperature_forgotten(student, teacher, temperature):
    values = right_rows(student, teacher, temperature)
    student.div_(temperature)
    return values


@mutant(ClosedLaws, "test_its_closed_form_takes_a_temperature_for_each_item", "with a temperature for each item")
@_with
def one_temperature_for_the_block(student, teacher, temperature):
    return right_rows(student, teacher, float(torch.as_tensor(temperature).mean()))


@mutant(
    ClosedLaws, "test_its_closed_form_takes_rows_alone", "different results for a row alone and within a block of rows"
)
@_with
def gradient_centred_over_the_block(student, teacher, temperature):
    values = right_rows(student, teacher, temperature)
    student.sub_(student.mean(0))
    return values


@mutant(ClosedLaws, "test_its_closed_form_stays_the_loss_where_a_class_is_ruled_out", "is -inf")
@_with
def nothing_times_its_logarithm(student, teacher, temperature):
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    right_rows(student, teacher, temperature)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2


@mutant(ClosedLaws, "test_its_closed_form_stays_finite_where_the_loss_does", "at logits of 1e4 in float32")
@_with
def logarithm_of_a_probability(student, teacher, temperature):
    own, theirs = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    right_rows(student, teacher, temperature)
    return divergence(own.log(), theirs.log()) * temperature**2


@mutant(ClosedLaws, "test_its_closed_form_keeps_its_gradient_under_an_offset", "added to the student's logits")
@_with
def probabilities_from_a_rounded_sum(student, teacher, temperature):
    values = right_rows(student.clone(), teacher, temperature)
    own, theirs = student / temperature, teacher / temperature
    own, theirs = ((one - one.logsumexp(-1, keepdim=True)).exp() for one in (own, theirs))
    student.copy_((own - theirs) * temperature)
    return values
