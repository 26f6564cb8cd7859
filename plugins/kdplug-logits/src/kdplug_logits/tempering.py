"""Reading a temperature: one number, or one for each item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdplug import SettingError, ShapeError
from kdplug_logits.shape import written


def read_temperature(owner: str, temperature: Tensor | float, logits: Tensor) -> Tensor | float:
    """A number, or a tensor without a gradient that broadcasts to ``logits`` with 1 on the axis of the classes.

    A tensor is one element, or ``[*items]`` or ``[*items, 1]``, where any axis may be 1. Fewer axes are ambiguous:
    ``[batch]`` beside logits ``[batch, length, classes]`` would run along the length.

    Raises: ``ShapeError`` for any other shape; ``SettingError`` for a number that is not positive and finite.
    """
    if not isinstance(temperature, Tensor):
        if not 0.0 < temperature < math.inf:
            raise SettingError(f"{owner}: temperature must be a positive number, got {temperature!r}")
        return temperature
    values = temperature.detach().to(device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
    if values.numel() == 1 and logits.dim() >= values.dim() - 1:
        return values.reshape(())
    if values.dim() == logits.dim() - 1:
        values = values.unsqueeze(-1)
    wanted = (*logits.shape[:-1], 1)
    if values.dim() != logits.dim() or any(
        have not in (1, want) for have, want in zip(values.shape, wanted, strict=True)
    ):
        raise ShapeError(
            f"{owner}: temperature {written(temperature)} does not fit logits {written(logits)}: "
            f"it must be a number or {list(logits.shape[:-1])}, one for each item"
        )
    return values


def over_temperature(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """``logits / temperature``, and ``logits`` themselves where that is the number 1."""
    return logits if not isinstance(temperature, Tensor) and temperature == 1 else logits / temperature


def times_squared(values: Tensor, temperature: Tensor | float) -> Tensor:
    """Values per item times the squared temperature, each item's own where there are several.

    Shapes: values ``[*items]``, the temperature as ``read_temperature`` returns it.
    """
    if not isinstance(temperature, Tensor):
        return values if temperature == 1 else values * temperature**2
    return values * (temperature.squeeze(-1) if temperature.dim() else temperature).square()
