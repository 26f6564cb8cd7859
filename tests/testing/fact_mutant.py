"""Losses that state a fact that is wrong, or leave one out."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.specimen import CorrelationLaws, HiddenLaws, LossLaws, at_least_float32, check, correlation, hidden_mse, kl
from torch import Tensor, nn
from torch.nn import functional

from kdplug import LossSum, facts


class SimilarityLaws(LossLaws):
    non_negative = zero_at_equality = True


class DroppedLaws(LossLaws):
    sums = True


class HardLaws(LossLaws):
    pass


class CodeLaws(LossLaws):
    teacher_shape = (3, 4)
    t2 = None


class ScaledLaws(LossLaws):
    non_negative = True
    trains = ("scale",)


def _gram(features: Tensor) -> Tensor:
    flat = at_least_float32(features).flatten(0, -2)
    return flat @ flat.mT


@facts(compares_items=True)
def similarity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared distance of the similarities of all tokens of a batch, of any widths."""
    check(student_features[..., :1], teacher_features[..., :1])
    if student_features.shape[-1] == 1 or teacher_features.shape[-1] == 1:
        raise ValueError("a feature must be wider than 1")
    return (_gram(student_features) - _gram(teacher_features.detach())).square().mean()


@facts(random=True)
def dropped(student_features: Tensor, teacher_features: Tensor, draw_seed: int) -> LossSum:
    """Squared error of the channels that were drawn."""
    check(student_features, teacher_features)
    generator = torch.Generator().manual_seed(draw_seed)
    kept = torch.rand(student_features.shape, generator=generator) < 0.5
    error = (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square() * kept
    return LossSum(error.sum(), student_features[..., 0].numel())


@facts(takes_scores=True)
def scores(student_logits: Tensor, teacher_logits: Tensor) -> LossSum:
    """Squared error of scores, mean over items."""
    check(student_logits, teacher_logits)
    error = (at_least_float32(student_logits) - at_least_float32(teacher_logits.detach())).square().sum(-1)
    return LossSum(error.sum(), error.numel())


@facts(reads_teacher=False)
def hard(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> LossSum:
    """Cross-entropy with the labels."""
    check(student_logits, teacher_logits)
    loss = functional.cross_entropy(student_logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return LossSum(loss, (labels >= 0).sum())


@facts(integer_inputs=("teacher_features",))
def codes(student_features: Tensor, teacher_features: Tensor) -> LossSum:
    """Cross-entropy with the teacher's codes: the student's features score the codes of a codebook."""
    if student_features.shape[:-1] != teacher_features.shape or student_features.shape[-1] < 5:
        raise ValueError("one code for each token")
    flat = at_least_float32(student_features).flatten(0, -2)
    return LossSum(functional.cross_entropy(flat, teacher_features.flatten(), reduction="sum"), len(flat))


class Scaled(nn.Module):
    """Squared error of the student times a learned number."""

    own_parameters = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Compute the loss."""
        return hidden_mse(student_features * self.scale, teacher_features, None)


DRAWS = "test_it_draws_if_it_says_so_and_not_otherwise"


@mutant(DroppedLaws, DRAWS, "State random = True in the class, or with @kdplug.facts(random=True)")
def drawn_and_not_stated(student_features, teacher_features, draw_seed):
    return dropped(student_features, teacher_features, draw_seed)


@mutant(HiddenLaws, DRAWS, "State random = True")
def dropout_that_is_not_stated(student_features, teacher_features, mask):
    return hidden_mse(functional.dropout(student_features, 0.5), teacher_features, mask)


@mutant(DroppedLaws, DRAWS, "states random = True, but gives the same value for two seeds. Remove this fact")
@facts(random=True)
def stated_and_not_drawn(student_features, teacher_features):
    return hidden_mse(student_features, teacher_features, None)


COMPARES = "test_a_loss_that_says_it_compares_items_does"


@mutant(SimilarityLaws, COMPARES, "is the mean or sum of those for two parts of it. Remove this fact")
@facts(compares_items=True)
def mean_that_says_it_compares(student_features, teacher_features):
    return hidden_mse(student_features, teacher_features, None).value


@mutant(CorrelationLaws, COMPARES, "is the mean or sum of those for two parts of it. Remove this fact")
@facts(compares_items=True)
def correlation_of_each_item_alone(student_logits, teacher_logits):
    return correlation(student_logits, teacher_logits)


@mutant(HiddenLaws, COMPARES, "states compares_items = True, but its value")
@facts(compares_items=True)
def sum_that_says_it_compares(student_features, teacher_features, mask) -> LossSum:
    return hidden_mse(student_features, teacher_features, mask)


@mutant(DroppedLaws, "test_a_loss_that_says_it_takes_scores_needs_to", "but stays finite at a teacher score of -inf")
@facts(takes_scores=True)
def probabilities_that_say_they_are_scores(student_logits, teacher_logits, temperature):
    return kl(student_logits, teacher_logits, temperature, None)


@mutant(
    ScaledLaws, "test_a_loss_that_says_it_has_parameters_does", "states own_parameters = True, but has no parameters"
)
@facts(own_parameters=True)
def parameters_that_are_not_there(student_features, teacher_features):
    return hidden_mse(student_features, teacher_features, None)


@mutant(
    HardLaws, "test_a_loss_that_says_it_ignores_the_teacher_does", "states reads_teacher = False, but its value changes"
)
@facts(reads_teacher=False)
def teacher_that_is_read(student_logits, teacher_logits, labels) -> LossSum:
    total, count = hard(student_logits, teacher_logits, labels)
    return LossSum(total + kl(student_logits, teacher_logits, 1.0, None).total, count)


WHOLE = "test_the_whole_numbers_that_it_says_it_takes_are_read"


@mutant(CodeLaws, WHOLE, "but does not request teacher_logits. Name inputs of the loss: student_features")
@facts(integer_inputs=("teacher_features", "teacher_logits"))
def input_that_is_not_requested(student_features, teacher_features):
    return codes(student_features, teacher_features)


@mutant(CodeLaws, WHOLE, "but its value is the same for other numbers")
@facts(integer_inputs=("teacher_features",))
def whole_numbers_that_are_not_read(student_features, teacher_features):
    return codes(student_features, torch.zeros_like(teacher_features))


@mutant(ScaledLaws, "test_its_attributes_are_read", "sets own_parameter, which kdplug does not read")
class MisspeltFact(Scaled):
    own_parameter = True
