"""TextBrewer's schedulers, under their original names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdplug.host.textbrewer_maps import TEMPERATURE_SCHEDULER, WEIGHT_SCHEDULER

__all__ = [
    "constant_temperature_scheduler",
    "cwsm_temperature_scheduler_builder",
    "flsw_temperature_scheduler_builder",
    "linear_decay_weight_scheduler",
    "linear_growth_weight_scheduler",
]


def linear_growth_weight_scheduler(x: float) -> Any:
    """Return the weight scheduler ``linear_growth``; ``x`` is the completed fraction of the run."""
    return WEIGHT_SCHEDULER["linear_growth"](x)


def linear_decay_weight_scheduler(x: float) -> Any:
    """Return the weight scheduler ``linear_decay``; ``x`` is the completed fraction of the run."""
    return WEIGHT_SCHEDULER["linear_decay"](x)


def constant_temperature_scheduler(logits_S: Tensor, logits_T: Tensor, base_temperature: float) -> Any:
    """Return the temperature scheduler ``constant``."""
    return TEMPERATURE_SCHEDULER["constant"](logits_S, logits_T, base_temperature)


def flsw_temperature_scheduler_builder(beta: float, gamma: float, eps: float = 1e-4) -> Any:
    """Build the temperature scheduler ``flsw``: ``(logits_S, logits_T, base_temperature)`` to ``[*items]``."""
    return TEMPERATURE_SCHEDULER["flsw"](beta, gamma, eps)


def cwsm_temperature_scheduler_builder(beta: float) -> Any:
    """Build the temperature scheduler ``cwsm``: ``(logits_S, logits_T, base_temperature)`` to ``[*items]``."""
    return TEMPERATURE_SCHEDULER["cwsm"](beta)
