"""A temperature with gradient: what a trained temperature scheduler gets from each loss. Laws compare it with differences."""

from __future__ import annotations

import math

import pytest
import torch
from logits_strategies import LOSSES, TEMPERED, Case, case
from torch import Tensor

from kdplug import SettingError, SparseLogits

every = pytest.mark.parametrize("name", TEMPERED)


def at(found: Case, temperature: Tensor | float) -> Case:
    student = found.student.detach().clone().requires_grad_()
    return Case(student, found.teacher, found.labels, temperature)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64, requires_grad=True)


@every
def test_the_students_gradient_does_not_depend_on_whether_the_temperature_is_trained(name: str) -> None:
    found = case(4, 6)
    for temperature in (leaf(2.0), leaf(1.0, 2.0, 3.0, 4.0)):
        both = [at(found, one) for one in (temperature, temperature.detach())]
        values = [one.loss(name).value for one in both]
        assert torch.equal(*values)
        gradients = [one.gradient(name) for one in both]
        assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)


@every
def test_classes_that_the_teacher_rules_out_leave_the_gradient_of_the_temperature_finite(name: str) -> None:
    found, temperature = at(case(4, 6), leaf(1.0, 2.0, 3.0, 4.0)), leaf(2.0)
    found.teacher = found.teacher.clone()
    found.teacher[:, 1] = -math.inf
    found.teacher[0, 1:] = -math.inf
    for one in (found.temperature, temperature):
        found.temperature = one
        (gradient,) = torch.autograd.grad(found.loss(name).value, one)
        assert gradient.isfinite().all()
        assert gradient.any()


@every
def test_an_evaluation_without_gradient_takes_the_same_temperature(name: str) -> None:
    found, temperature = case(4, 6), leaf(2.0)
    with torch.no_grad():
        assert torch.equal(at(found, temperature).loss(name).value, at(found, temperature.detach()).loss(name).value)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.5])
def test_the_gradient_of_draws_is_on_average_that_of_the_whole_cross_entropy(sharpness: float) -> None:
    found, temperature = case(1, 6, scale=1.0), leaf(1.5)
    student, teacher = found.student.detach(), found.teacher
    whole = -((teacher / temperature).softmax(-1) * (student / temperature).log_softmax(-1)).sum()
    drawn = LOSSES["sampled"](student, teacher, temperature, draws=1 << 16, sharpness=sharpness, t2=False).value
    gradients = [torch.autograd.grad(value, temperature)[0].item() for value in (drawn, whole)]
    of_student_alone = -((teacher / 1.5).softmax(-1) * (student / temperature).log_softmax(-1)).sum()
    (half,) = torch.autograd.grad(of_student_alone, temperature)
    assert gradients[0] == pytest.approx(gradients[1], rel=0.03)
    assert abs(half.item() - gradients[1]) > 0.2 * abs(gradients[1])


@pytest.mark.parametrize("name", ["topk", "sampled"])
def test_a_sparse_teacher_refuses_a_temperature_with_gradient(name: str) -> None:
    found = case(4, 6)
    sparse = SparseLogits.top(found.teacher, 3, 2.0)
    if name == "sampled":
        sparse = SparseLogits(sparse.ids, None, 6, weights=torch.full(sparse.ids.shape, 1 / 3), temperature=2.0)
    with pytest.raises(SettingError, match=rf"^{name}: temperature has a gradient, but the teacher's SparseLogits"):
        LOSSES[name](found.student, None, leaf(2.0), sparse)
