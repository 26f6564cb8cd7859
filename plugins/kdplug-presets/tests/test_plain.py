"""The short way that losses have for small float32 tensors, beside their long way (see conftest)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdplug_presets.hidden import hidden_mse
from kdplug_presets.kd import ce


@pytest.fixture
def sides() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    return student.requires_grad_(), teacher.requires_grad_()


@pytest.mark.parametrize("loss", [ce, hidden_mse])
def test_a_teacher_in_float32_that_asks_for_a_gradient_gets_none(loss, sides) -> None:
    loss(*sides).total.backward()
    student, teacher = sides
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [ce, hidden_mse])
def test_its_value_is_that_of_float64(loss, sides) -> None:
    short, whole = loss(*sides), loss(*(side.detach().double() for side in sides))
    assert short.count == whole.count
    torch.testing.assert_close(short.total.double(), whole.total, rtol=1e-6, atol=0)
