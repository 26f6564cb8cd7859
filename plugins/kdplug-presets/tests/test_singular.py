"""Classes that are ruled out, and vectors without a direction."""

from __future__ import annotations

import pytest
import torch
from presets_strategies import (
    KD,
    features,
    finite,
)

from kdplug_presets import kd

every_kd = pytest.mark.parametrize("name", KD)


def test_a_class_that_the_teacher_rules_out_adds_nothing() -> None:
    teacher = torch.tensor([[0.3, -0.2, -float("inf")]])
    student = torch.tensor([[0.1, 0.4, -float("inf")]], requires_grad=True)
    value = kd.ce(student, teacher, 2.0).value
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.allclose(value, kd.ce(student[:, :2], teacher[:, :2], 2.0).value)
    assert finite(gradient)
    assert gradient[0, 2] == 0


def test_a_class_that_only_the_teacher_rules_out_has_a_finite_gradient() -> None:
    student = torch.tensor([[0.1, 0.4, 7.0]], requires_grad=True)
    value = kd.ce(student, torch.tensor([[0.3, -0.2, -float("inf")]])).value
    assert finite(value, *torch.autograd.grad(value, student))


@every_kd
def test_logits_of_ten_thousand_stay_finite(name: str) -> None:
    student = (torch.randn(4, 7) * 1e4).requires_grad_()
    value = KD[name](student, torch.randn(4, 7) * 1e4).value
    assert finite(value, *torch.autograd.grad(value, student))


@pytest.mark.parametrize("name", ["pkd", "cos"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_zero_vector_gives_no_nan(name: str, side: str) -> None:
    case = features(name)
    getattr(case, side)[0].data[:, 0] = 0.0
    assert finite(case.loss().value, *case.gradients())
