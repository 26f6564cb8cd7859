"""Temperatures of every legal shape; every other shape is an error and never a broadcast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from presets_strategies import (
    KD,
    oracle_of,
)

from kdplug import SettingError, ShapeError

every_kd = pytest.mark.parametrize("name", KD)


def per_item(shape: tuple[int, ...]) -> torch.Tensor:
    """Temperatures that differ along every axis."""
    return 1.0 + torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@every_kd
@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1), (1, 1, 1), (3, 4), (3, 4, 1), (3, 1), (1, 4), (3, 1, 1), (1, 4, 1)]
)
def test_a_temperature_tensor_of_every_legal_shape_runs_along_the_axes_it_names(name: str, shape: Any) -> None:
    student, teacher, temperature = torch.randn(3, 4, 5), torch.randn(3, 4, 5), per_item(shape)
    full = (
        temperature.view(()) if temperature.numel() == 1 else temperature.view(shape if len(shape) == 2 else shape[:2])
    )
    expected = oracle_of(name)(student, teacher, full.expand(3, 4))
    assert KD[name](student, teacher, temperature).value.item() == pytest.approx(expected.item(), rel=1e-5)


@every_kd
@pytest.mark.parametrize("shape", [(3,), (4,), (5,), (3, 3), (4, 3), (3, 4, 5), (1, 1, 5), (1, 3, 4, 1), (0,)])
def test_an_ambiguous_or_wrong_temperature_tensor_is_an_error_and_not_a_broadcast(name: str, shape: Any) -> None:
    with pytest.raises(ShapeError, match=r"the shape of temperature, \[.*does not match logits \[3, 4, 5\]"):
        KD[name](torch.randn(3, 4, 5), torch.randn(3, 4, 5), per_item(shape))


@every_kd
@pytest.mark.parametrize("size", [3, 4])
def test_a_batch_of_temperatures_beside_a_square_batch_of_sequences_is_an_error(name: str, size: int) -> None:
    with pytest.raises(ShapeError, match="one temperature per item"):
        KD[name](torch.randn(size, size, 5), torch.randn(size, size, 5), per_item((size,)))


@every_kd
@pytest.mark.parametrize("temperature", [0, 0.0, -3.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_an_error(name: str, temperature: float) -> None:
    with pytest.raises(SettingError, match="temperature must be a positive finite number"):
        KD[name](torch.randn(2, 5), torch.randn(2, 5), temperature)
