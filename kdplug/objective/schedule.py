"""A weight as a pure function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdplug.errors import ConfigError, KdplugError, SignatureError
from kdplug.host import registry
from kdplug.host.spec import ComponentSpec


@dataclass(frozen=True, slots=True)
class Schedule:
    """``base`` times what the scheduler says, or ``base`` throughout where there is none."""

    base: float
    scheduler: Callable[..., Any] | None = None
    inputs: tuple[str, ...] = ()
    owner: str = ""

    def at(self, progress: float, step: int = 0, total_steps: int = 0) -> float:
        """The weight at ``progress`` in [0, 1].

        Raises: ``SignatureError`` where the scheduler returns anything but a finite number.
        """
        if self.scheduler is None:
            return self.base
        values = {"progress": progress, "step": step, "total_steps": total_steps}
        return self.base * self._number(self.scheduler(*map(values.__getitem__, self.inputs)), progress)

    def _number(self, factor: Any, progress: float) -> float:
        if isinstance(factor, Tensor) and factor.dim() == 0:
            factor = factor.item()
        if isinstance(factor, (int, float)) and math.isfinite(factor):
            return float(factor)
        raise SignatureError(f"{self.owner} must return a finite number, got {factor!r} at progress {progress:g}")


def build_schedule(weight: float, spec: ComponentSpec | None, field: str) -> Schedule:
    """The schedule of a weight. ``field`` is the config key of its scheduler, for messages."""
    if spec is None:
        return Schedule(float(weight))
    try:
        component = registry.weight_schedulers.build(spec)
    except KdplugError as error:
        raise error.at(field) from error.__cause__
    return Schedule(float(weight), component.target, component.inputs, component.entry.qualified)


def checked_progress(progress: float) -> float:
    """``progress`` itself.

    Raises: ``ConfigError`` where it is not in [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ConfigError(f"must lie in [0, 1], got {progress!r}", field="progress")
    return progress
