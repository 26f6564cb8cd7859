"""Projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdplug import SettingError
from kdplug_presets.projection import linear, relu, tanh

every = pytest.mark.parametrize("make", [linear, relu, tanh])


@every
def test_a_projection_goes_from_the_students_width_to_the_teachers(make: Any) -> None:
    assert make(4, 6)(torch.randn(2, 3, 4)).shape == (2, 3, 6)


@every
def test_every_call_builds_its_own_modules_activation_included(make: Any) -> None:
    first, second = set(make(4, 6).modules()), set(make(4, 6).modules())
    assert not first & second


@every
def test_weights_are_drawn_with_the_given_deviation_and_biases_are_zero(make: Any) -> None:
    layer = next(module for module in make(400, 300, std=0.1).modules() if isinstance(module, nn.Linear))
    assert layer.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert (layer.bias == 0).all()


@every
def test_a_bias_can_be_left_out(make: Any) -> None:
    assert len(list(make(4, 6, bias=False).parameters())) == 1


@every
@pytest.mark.parametrize("widths", [(0, 4), (4, -1)])
def test_a_width_that_is_not_positive_is_an_error(make: Any, widths: tuple[int, int]) -> None:
    with pytest.raises(SettingError, match="must be a positive width"):
        make(*widths)


def test_activations_are_applied() -> None:
    x = torch.randn(50, 4) * 100
    assert (relu(4, 6)(x) >= 0).all()
    assert (tanh(4, 6)(x).abs() <= 1).all()
