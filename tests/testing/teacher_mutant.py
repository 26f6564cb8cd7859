"""Defects of teacher updates and of external teachers, and the right ones."""

from __future__ import annotations

import time

import torch
from testing.mutant import mutant
from torch import nn

from kdplug.testing import TeacherLaws, TeacherUpdateLaws


class AverageLaws(TeacherUpdateLaws):
    pass


class LinearLaws(TeacherLaws):
    pass


def average(teacher_tensor, student_tensor, *, decay: float = 0.9):
    """A moving average."""
    return decay * teacher_tensor + (1 - decay) * student_tensor


LIKE = "test_it_returns_a_tensor_like_the_teachers"


@mutant(AverageLaws, LIKE, "must return a tensor [4, 3], like the teacher's, got NoneType")
def nothing_is_returned(teacher_tensor, student_tensor):
    average(teacher_tensor, student_tensor)


@mutant(AverageLaws, LIKE, "must return a tensor [4, 3], like the teacher's, got []")
def a_scalar(teacher_tensor, student_tensor):
    return average(teacher_tensor, student_tensor).mean()


@mutant(AverageLaws, LIKE, "returned a number that is not finite")
def divided_by_the_steps_that_are_left(teacher_tensor, student_tensor, step, total_steps):
    return teacher_tensor + (student_tensor - teacher_tensor) / torch.tensor(float(total_steps - step))


PRECISION = "test_the_precision_is_the_teachers"


@mutant(AverageLaws, PRECISION, "returned torch.float64 for torch.float32")
def in_double_precision(teacher_tensor, student_tensor):
    return average(teacher_tensor.double(), student_tensor.double())


@mutant(AverageLaws, PRECISION, "ignores a change of the student by a thousandth")
def in_half_precision(teacher_tensor, student_tensor):
    return average(teacher_tensor.bfloat16(), student_tensor.bfloat16()).to(teacher_tensor.dtype)


@mutant(AverageLaws, "test_its_inputs_are_not_modified", "modified its input in place: student_tensor")
def scaled_in_place(teacher_tensor, student_tensor):
    return student_tensor.mul_(0.1) + 0.9 * teacher_tensor


@mutant(AverageLaws, "test_the_same_inputs_give_the_same_tensor", "a second call gives another tensor")
def with_noise(teacher_tensor, student_tensor):
    return average(teacher_tensor, student_tensor) + 1e-3 * torch.randn_like(teacher_tensor)


@mutant(AverageLaws, "test_it_keeps_no_state", "has parameters or buffers (seen), which are not saved")
class CountsInABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, teacher_tensor, student_tensor):
        return average(teacher_tensor, student_tensor)


@mutant(AverageLaws, "test_the_student_moves_the_teacher", "gives the same tensor for any student")
def the_teacher_alone(teacher_tensor, student_tensor):
    return teacher_tensor


@mutant(
    AverageLaws, "test_a_teacher_equal_to_the_student_stays_equal", "changes a teacher that is equal to the student"
)
def weights_of_more_than_one(teacher_tensor, student_tensor):
    return 0.9 * teacher_tensor + 0.2 * student_tensor


@mutant(AverageLaws, "test_each_number_is_updated_by_itself", "depends on other numbers of the tensors")
def scaled_by_the_norm(teacher_tensor, student_tensor):
    change = student_tensor - teacher_tensor
    return teacher_tensor + 0.1 * change / change.norm().clamp_min(1)


class Linear:
    """A local stand-in for a served teacher."""

    def __init__(self, *, scale: float = 1.0) -> None:
        self.weight = scale * torch.linspace(-1, 1, 24).reshape(3, 8)

    def __call__(self, batch):
        return {"logits": batch @ self.weight.T}

    def fingerprint(self):
        return {"model": "linear", "weight": float(self.weight.sum())}


ADAPTOR = "test_it_returns_what_an_adaptor_returns"


@mutant(LinearLaws, ADAPTOR, "must be a tensor")
class ReturnsLists(Linear):
    def __call__(self, batch):
        return {"logits": (batch @ self.weight.T).tolist()}


@mutant(LinearLaws, ADAPTOR, "returned no outputs")
class ReturnsNothing(Linear):
    def __call__(self, batch):
        return {}


@mutant(LinearLaws, ADAPTOR, "returned nan under logits")
class ReturnsNan(Linear):
    def __call__(self, batch):
        return {"logits": batch @ self.weight.T / 0 * 0}


@mutant(LinearLaws, ADAPTOR, "lacks __call__(batch) or fingerprint()")
class HasNoFingerprint:
    def __call__(self, batch):
        return {"logits": batch}


@mutant(LinearLaws, "test_the_batch_is_not_modified", "modified the batch")
class ScalesTheBatch(Linear):
    def __call__(self, batch):
        return super().__call__(batch.mul_(2))


@mutant(LinearLaws, "test_the_same_batch_gives_the_same_outputs", "a second call gives other outputs")
class Samples(Linear):
    def __call__(self, batch):
        return {"logits": super().__call__(batch)["logits"] + torch.randn(len(batch), 3)}


@mutant(LinearLaws, "test_the_outputs_carry_no_gradient", "its outputs carry a gradient")
class KeepsItsGraph(Linear):
    def __call__(self, batch):
        return {"logits": batch @ self.weight.clone().requires_grad_().T}


EACH = "test_examples_are_answered_each_by_itself"


@mutant(LinearLaws, EACH, "do not get their outputs in that order")
class SortsItsRows(Linear):
    def __call__(self, batch):
        return super().__call__(batch[batch[:, 0].argsort()])


FINGERPRINT = "test_its_fingerprint_is_plain_data_and_stays_the_same"


@mutant(LinearLaws, FINGERPRINT, "its fingerprint is not plain data")
class HasATensorAsFingerprint(Linear):
    def fingerprint(self):
        return self.weight


@mutant(LinearLaws, FINGERPRINT, "its fingerprint changes between calls or objects")
class HasATimeAsFingerprint(Linear):
    def fingerprint(self):
        return time.perf_counter_ns()
