"""Projections of the student's feature to the teacher's width. Every call creates a new module."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from kdplug import SettingError

Std = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def linear(in_dim: int, out_dim: int, *, bias: bool = True, std: Std = 0.02) -> nn.Linear:
    """Build a linear layer with weights drawn from N(0, ``std``²) and bias 0.

    Settings: ``bias``, add a bias, initially 0; ``std`` of the normal distribution of the initial weights.

    Shapes: ``[*, in_dim]`` (student) to ``[*, out_dim]`` (teacher).
    Raises: ``SettingError`` if a width is not positive.
    Source: TextBrewer ``linear_projection``, arXiv:2002.12620.
    """
    for name, width in (("in_dim", in_dim), ("out_dim", out_dim)):
        if width < 1:
            raise SettingError(f"{name} must be a positive width, got {width!r}")
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.normal_(layer.weight, mean=0.0, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def relu(in_dim: int, out_dim: int, *, bias: bool = True, std: Std = 0.02) -> nn.Sequential:
    """Build a linear layer as in ``linear``, followed by a ReLU.

    Settings: ``bias``, add a bias, initially 0; ``std`` of the normal distribution of the initial weights.

    Shapes: ``[*, in_dim]`` (student) to ``[*, out_dim]`` (teacher).
    Raises: ``SettingError`` if a width is not positive.
    Source: TextBrewer ``projection_with_activation``, arXiv:2002.12620.
    """
    return nn.Sequential(linear(in_dim, out_dim, bias=bias, std=std), nn.ReLU())


def tanh(in_dim: int, out_dim: int, *, bias: bool = True, std: Std = 0.02) -> nn.Sequential:
    """Build a linear layer as in ``linear``, followed by a hyperbolic tangent.

    Settings: ``bias``, add a bias, initially 0; ``std`` of the normal distribution of the initial weights.

    Shapes: ``[*, in_dim]`` (student) to ``[*, out_dim]`` (teacher).
    Raises: ``SettingError`` if a width is not positive.
    Source: TextBrewer ``projection_with_activation``, arXiv:2002.12620.
    """
    return nn.Sequential(linear(in_dim, out_dim, bias=bias, std=std), nn.Tanh())
