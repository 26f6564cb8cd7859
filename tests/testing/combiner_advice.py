"""Advice for teacher combiners, followed."""

from __future__ import annotations

import torch
from testing import combiner_mutant as wrong
from testing.advice import followed
from testing.combiner_mutant import stacked
from testing.specimen import laws_of, sure
from torch import nn

from kdplug.testing import TeacherCombinerLaws


class SymmetricLaws(TeacherCombinerLaws):
    symmetric = True


SHAPE = "reduce only over teachers"


@followed("mean_over_the_classes", SHAPE)
@followed("a_list_of_logits", SHAPE)
@followed("logits_of_the_neighbour", "Return each item's logits at its own place")
@followed("shifted_by_a_large_number", "do not add large numbers")
def mean_over_teachers(teacher_logits_list):
    return stacked(teacher_logits_list).mean(0)


@followed("only_teachers_that_are_right", "clamp a sum of weights before dividing by it")
def teachers_that_are_right(teacher_logits_list, labels):
    teachers = stacked(teacher_logits_list)
    weight = (teachers.argmax(-1) == labels).double()[..., None]
    return (weight * teachers).sum(0) / weight.sum(0).clamp_min(1)


DETACH = "compute them under torch.no_grad(), or detach each input"
followed("gradient_to_the_teachers", DETACH)(torch.no_grad()(wrong.gradient_to_the_teachers))
followed("gradient_to_the_teachers", DETACH)(mean_over_teachers)
followed("gradient_to_the_student", DETACH)(torch.no_grad()(wrong.gradient_to_the_student))


@followed("gradient_to_the_student", DETACH)
def each_input_detached(teacher_logits_list, student_logits):
    return stacked(teacher_logits_list).mean(0) + 0 * student_logits.detach()


NOT_TRAINED = "Make each a setting or a buffer"


@followed("LearnedWeights", NOT_TRAINED)
class WeightsInABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(3))

    def forward(self, teacher_logits_list):
        return (stacked(teacher_logits_list) * self.weights.softmax(0)[:, None, None]).sum(0)


@followed("LearnedWeights", NOT_TRAINED)
class WeightsAsASetting(nn.Module):
    def __init__(self, *, weights: tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, teacher_logits_list):
        return (stacked(teacher_logits_list) * torch.tensor(self.weights).softmax(0)[:, None, None]).sum(0)


IN_PLACE = "Use x + y instead of x.add_(y), or clone first"


@followed("summed_into_the_first", IN_PLACE)
def summed(teacher_logits_list):
    total = teacher_logits_list[0].detach()
    for logits in teacher_logits_list[1:]:
        total = total + logits.detach()
    return total / len(teacher_logits_list)


@followed("summed_into_the_first", IN_PLACE)
def summed_into_a_clone(teacher_logits_list):
    first, *others = teacher_logits_list
    return wrong.summed_into_the_first([first.clone(), *others])


@followed("labels_clamped_in_place", IN_PLACE)
def labels_cloned(teacher_logits_list, labels, temperature):
    return wrong.labels_clamped_in_place(teacher_logits_list, labels.clone(), temperature)


@followed("a_teacher_by_chance", "Use no random numbers and do not count calls; a choice may depend on step")
def a_teacher_by_step(teacher_logits_list, step):
    return stacked(teacher_logits_list)[step % len(teacher_logits_list)]


AGREE = "Divide a sum over teachers by their number, or declare keeps_agreement = False"
followed("a_sum_for_a_mean", AGREE)(laws_of(SymmetricLaws, wrong.a_sum_for_a_mean, keeps_agreement=False))


@followed("a_sum_for_a_mean", AGREE)
def a_sum_that_is_divided(teacher_logits_list):
    return wrong.a_sum_for_a_mean(teacher_logits_list) / len(teacher_logits_list)


ORDER = "Treat all teachers in the same way, or do not declare symmetric"
followed("the_last_teacher_is_forgotten", ORDER)(mean_over_teachers)
followed("the_last_teacher_is_forgotten", ORDER)(laws_of(TeacherCombinerLaws, wrong.the_last_teacher_is_forgotten))


@followed("one_weight_for_the_whole_batch", "Compute weights for each item, over its classes and teachers alone")
def a_weight_for_each_item(teacher_logits_list):
    teachers = stacked(teacher_logits_list)
    weight = teachers.softmax(-1).amax(-1).softmax(0)
    return (weight[..., None] * teachers).sum(0)


@followed("sorted_along_the_classes", "Reduce or sort over teachers, the first axis of torch.stack")
def sorted_over_teachers(teacher_logits_list):
    return stacked(teacher_logits_list).sort(0).values.mean(0)


@followed("log_of_the_mean_softmax", "Use log_softmax and logsumexp instead of log(softmax)")
def logsumexp_of_log_softmax(teacher_logits_list):
    return stacked(teacher_logits_list).log_softmax(-1).logsumexp(0)


RULED_OUT = "Select with torch.where instead of a product with 0, and change no other class of the item"


@followed("weight_times_minus_infinity", RULED_OUT)
def selected_by_weight(teacher_logits_list):
    teachers = stacked(teacher_logits_list)
    chosen = torch.nn.functional.one_hot(teachers.softmax(-1).amax(-1).argmax(0), 3).movedim(-1, 0)[..., None]
    return torch.where(chosen > 0, chosen * teachers, 0.0).sum(0)


@followed("an_item_without_its_classes", RULED_OUT)
def an_item_without_one_class(teacher_logits_list):
    mean = stacked(teacher_logits_list).mean(0)
    return torch.where(mean.isinf(), -torch.inf, mean)


@followed("minus_one_hundred_as_an_index", "as labels.clamp_min(0) does")
def labels_replaced(teacher_logits_list, labels):
    return wrong.minus_one_hundred_as_an_index(teacher_logits_list, labels.clamp_min(0))


followed(
    "a_temperature_along_the_classes", "Divide logits by temperature.unsqueeze(-1) if the temperature is a tensor"
)(sure)
