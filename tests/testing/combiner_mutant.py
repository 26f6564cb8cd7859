"""Defects of teacher combiners."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import SureLaws, sure
from torch import nn


def stacked(teacher_logits_list):
    return torch.stack([logits.detach() for logits in teacher_logits_list])


@mutant(
    SureLaws, "test_it_returns_logits_in_the_shape_of_each_teachers", "must return logits [4, 5], like each teacher's"
)
def mean_over_the_classes(teacher_logits_list):
    return stacked(teacher_logits_list).mean(-1)


@mutant(SureLaws, "test_it_returns_logits_in_the_shape_of_each_teachers", "got list")
def a_list_of_logits(teacher_logits_list):
    return list(teacher_logits_list)


@mutant(SureLaws, "test_it_returns_logits_in_the_shape_of_each_teachers", "returned non-finite logits")
def only_teachers_that_are_right(teacher_logits_list, labels):
    teachers = stacked(teacher_logits_list)
    weight = (teachers.argmax(-1) == labels).double()[..., None]
    return (weight * teachers).sum(0) / weight.sum(0)


@mutant(SureLaws, "test_the_result_carries_no_gradient", "the combined logits require grad")
def gradient_to_the_teachers(teacher_logits_list):
    return torch.stack(list(teacher_logits_list)).mean(0)


@mutant(SureLaws, "test_the_result_carries_no_gradient", "the combined logits require grad")
def gradient_to_the_student(teacher_logits_list, student_logits):
    return stacked(teacher_logits_list).mean(0) + 0 * student_logits


@mutant(SureLaws, "test_nothing_in_it_waits_to_be_trained", "which would never be trained: weights")
class LearnedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, teacher_logits_list):
        return (stacked(teacher_logits_list) * self.weights.detach().softmax(0)[:, None, None]).sum(0)


@mutant(SureLaws, "test_its_inputs_are_not_modified", "modified its input in place: teacher_logits_list[0]")
def summed_into_the_first(teacher_logits_list):
    total = teacher_logits_list[0].detach()
    for logits in teacher_logits_list[1:]:
        total += logits.detach()
    return total / len(teacher_logits_list)


@mutant(SureLaws, "test_its_inputs_are_not_modified", "modified its input in place: labels")
def labels_clamped_in_place(teacher_logits_list, labels, temperature):
    return sure(teacher_logits_list, labels.sub_(1).clamp_(0), temperature)


@mutant(SureLaws, "test_the_same_inputs_give_the_same_logits", "on a second call: it depends on more than its inputs")
def a_teacher_by_chance(teacher_logits_list):
    return stacked(teacher_logits_list)[torch.rand(3).argmax()]


@mutant(SureLaws, "test_teachers_that_agree_are_combined_into_what_they_say", "probabilities differ by 0.")
def a_sum_for_a_mean(teacher_logits_list):
    return stacked(teacher_logits_list).sum(0)


@mutant(SureLaws, "test_the_order_of_the_teachers_does_not_matter", "is declared symmetric, but changes by")
def the_last_teacher_is_forgotten(teacher_logits_list):
    return stacked(teacher_logits_list[:-1]).mean(0)


@mutant(SureLaws, "test_items_are_combined_each_on_their_own", "the logits of one item changed those of the others")
def one_weight_for_the_whole_batch(teacher_logits_list):
    teachers = stacked(teacher_logits_list)
    weight = teachers.softmax(-1).amax(-1).flatten(1).mean(1).softmax(0)
    return torch.einsum("t,t...->...", weight, teachers)


@mutant(SureLaws, "test_items_keep_their_places", "do not get their logits in the same order")
def logits_of_the_neighbour(teacher_logits_list):
    return stacked(teacher_logits_list).mean(0).roll(1, dims=0)


@mutant(SureLaws, "test_classes_keep_their_places", "reordered classes")
def sorted_along_the_classes(teacher_logits_list):
    return stacked(teacher_logits_list).sort(-1).values.mean(0)


@mutant(SureLaws, "test_logits_of_ten_thousand_stay_finite", "non-finite logits")
def log_of_the_mean_softmax(teacher_logits_list):
    return stacked(teacher_logits_list).softmax(-1).mean(0).log()


@mutant(SureLaws, "test_logits_of_ten_thousand_stay_finite", "between float32 and float64")
def shifted_by_a_large_number(teacher_logits_list):
    return (stacked(teacher_logits_list) + 1e9).mean(0) - 1e9


@mutant(SureLaws, "test_a_class_that_teachers_rule_out_makes_no_nan", "gives logits that are nan or inf")
def weight_times_minus_infinity(teacher_logits_list):
    teachers = stacked(teacher_logits_list)
    chosen = torch.nn.functional.one_hot(teachers.softmax(-1).amax(-1).argmax(0), 3).movedim(-1, 0)
    return (chosen[..., None] * teachers).sum(0)


@mutant(SureLaws, "test_a_class_that_teachers_rule_out_makes_no_nan", "the other classes infinite logits")
def an_item_without_its_classes(teacher_logits_list):
    mean = stacked(teacher_logits_list).mean(0)
    return torch.where(mean.isinf().any(-1, keepdim=True), -torch.inf, mean)


@mutant(SureLaws, "test_items_without_a_label_stay_finite", "index -100")
def minus_one_hundred_as_an_index(teacher_logits_list, labels):
    teachers = stacked(teacher_logits_list)
    weight = teachers.softmax(-1).gather(-1, labels.expand(teachers.shape[:-1])[..., None])
    return (weight * teachers).sum(0) / weight.sum(0)


@mutant(SureLaws, "test_a_temperature_for_each_item_is_taken", "for each of the items")
def a_temperature_along_the_classes(teacher_logits_list, labels, temperature):
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.mean() + 1
    return sure(teacher_logits_list, labels, temperature)
