"""TextBrewer's projection builders, under their original names."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

from torch import nn

from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.textbrewer_maps import PROJ_MAP

__all__ = ["act_dict", "linear_projection", "projection_with_activation"]

act_dict: dict[str, type[nn.Module]] = {
    name: kind
    for name, kind in vars(nn.modules.activation).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
}
"""Torch's activations by name."""


def linear_projection(dim_in: int, dim_out: int) -> nn.Module:
    """Return the projection ``linear``."""
    layer: nn.Module = PROJ_MAP["linear"](dim_in, dim_out)
    return layer


def projection_with_activation(
    act_fn: str | nn.Module | Callable[[], nn.Module],
) -> Callable[[int, int], nn.Sequential]:
    """Return a builder of linear layers followed by an activation.

    ``act_fn`` is the name of a torch activation, a class, or a module, which is copied: projections never share it.

    Raises: ``ConfigError`` for a name that torch does not have.
    """
    if isinstance(act_fn, str) and act_fn not in act_dict:
        raise ConfigError(f"no activation {act_fn!r} in torch.{did_you_mean(act_fn, act_dict)}", field="act_fn")

    def projection(dim_in: int, dim_out: int) -> nn.Sequential:
        return nn.Sequential(linear_projection(dim_in, dim_out), _activation(act_fn))

    return projection


def _activation(act_fn: str | nn.Module | Callable[[], nn.Module]) -> nn.Module:
    if isinstance(act_fn, nn.Module):
        return deepcopy(act_fn)
    return act_dict[act_fn]() if isinstance(act_fn, str) else act_fn()
