"""A temperature with gradient: what a trained temperature scheduler gets from each KD loss. Laws compare it with differences."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from presets_strategies import KD

LOSSES = {**KD, "ce with t2": partial(KD["ce"], t2=True)}
SHAPES = ((), (1,), (3, 4), (3, 1), (1, 4, 1))

every = pytest.mark.parametrize("name", LOSSES)


def sides(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 4, 5, dtype=dtype, requires_grad=True), torch.randn(3, 4, 5, dtype=dtype)


def trained(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (1 + torch.rand(shape, dtype=dtype)).requires_grad_()


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_a_temperature_of_every_legal_shape_is_the_finite_difference(name: str, shape: Any) -> None:
    student, teacher = sides()

    def value(temperature: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = LOSSES[name](student.detach(), teacher, temperature).value
        return found

    assert torch.autograd.gradcheck(value, trained(shape))


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_of_the_student_do_not_depend_on_whether_it_is_trained(name: str, shape: Any) -> None:
    student, teacher = sides()
    temperature = trained(shape)
    values = [LOSSES[name](student, teacher, one).value for one in (temperature, temperature.detach())]
    assert torch.allclose(*values, rtol=1e-14)
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["ce", "ce with t2"])
def test_classes_that_a_side_rules_out_leave_both_gradients_finite(name: str) -> None:
    student, teacher = sides(torch.float32)
    temperature = trained((3, 4), torch.float32)
    teacher[..., 1] = -math.inf
    ruled_out = student.index_fill(-1, torch.tensor(1), -math.inf)
    for one in (student, ruled_out):
        found = torch.autograd.grad(LOSSES[name](one, teacher, temperature).value, (student, temperature))
        assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


@every
def test_an_evaluation_without_gradient_has_the_same_bits(name: str) -> None:
    student, teacher = sides(torch.float32)
    temperature = trained((3, 4), torch.float32)
    with torch.no_grad():
        found = [LOSSES[name](student, teacher, one).value for one in (temperature, temperature.detach())]
    assert torch.equal(*found)


@every
def test_the_teacher_gets_no_gradient_from_a_trained_temperature(name: str) -> None:
    student, teacher = sides()
    teacher.requires_grad_()
    LOSSES[name](student, teacher, trained(())).value.backward()
    assert teacher.grad is None
