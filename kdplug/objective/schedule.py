"""A weight as a pure function of progress."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.errors import ConfigError, KdplugError, ShapeError, SignatureError
from kdplug.host import registry
from kdplug.host.spec import ComponentSpec
from kdplug.objective.batch import Batch


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


MINIMUM = 1e-2
"""No scheduler gets below this. Zero divides by zero, and a negative temperature turns the distribution upside down."""

HIGH = 1e3
"""From here on float32 no longer has the digits for a divergence times the squared temperature."""


class Temperature(nn.Module):
    """A fixed temperature, or a scheduled one: a number, or one for each item where the scheduler reads the logits.

    A module, since a scheduler may be one, with buffers that move and are saved with the objective.
    """

    def __init__(self, base: float, spec: ComponentSpec | None) -> None:
        super().__init__()
        self.base = float(base)
        self.scheduler: Callable[..., Any] | None = None
        self.inputs: tuple[str, ...] = ()
        self.owner = ""
        self._has_warned = False
        if spec is not None:
            self._schedule(spec)

    def _schedule(self, spec: ComponentSpec) -> None:
        try:
            component = registry.temperature_schedulers.build(spec)
        except KdplugError as error:
            raise error.at("temperature_scheduler") from error.__cause__
        self.scheduler, self.inputs = component.target, component.inputs
        self.owner = component.entry.qualified

    def of(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> float | Tensor:
        """The temperature of a pair of logits, at least ``MINIMUM`` and without gradient.

        Shapes: logits ``[*items, classes]`` to a number or ``[*items]``.
        Raises: ``ShapeError``, ``SignatureError`` for what the scheduler may not return.
        """
        if self.scheduler is None:
            return self.base
        logits = {"student_logits": student_logits.detach(), "teacher_logits": teacher_logits}
        return self._scheduled(self.scheduler, logits, student_logits.shape[:-1], batch)

    def of_batch(self, batch: Batch) -> float | Tensor:
        """The temperature of a term without logits, such as a match; ``check_reads_no_logits`` must have passed."""
        return self.base if self.scheduler is None else self._scheduled(self.scheduler, {}, torch.Size(), batch)

    def check_reads_no_logits(self, name: str, owner: str) -> None:
        """Raises: ``ConfigError`` where the scheduler reads logits: term ``name``, whose loss is ``owner``, has none."""
        if read := [one for one in self.inputs if one in ("student_logits", "teacher_logits")]:
            raise ConfigError(
                f"{self.owner} makes temperatures from {' and '.join(read)}, and the match {name!r} has no logits, while its loss "
                f"{owner} asks for temperature. Use a scheduler that asks for temperature, progress, step and total_steps alone, "
                "no scheduler, or a match loss that does not ask for temperature",
                field="temperature_scheduler",
            )

    def _scheduled(
        self, scheduler: Callable[..., Any], logits: Mapping[str, Tensor], items: torch.Size, batch: Batch
    ) -> float | Tensor:
        values = {
            **logits,
            "temperature": self.base,
            "progress": batch.progress,
            "step": batch.step,
            "total_steps": batch.total_steps,
        }
        with torch.no_grad():
            found = self._checked(scheduler(*map(values.__getitem__, self.inputs)), items)
            if not self._has_warned:
                self._look_at(found, waits=batch.looks)
            return found

    def warn_if_high(self, highest: float) -> None:
        """Warn once, of a temperature at which float32 cannot hold what losses compute."""
        if highest < HIGH or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"temperature {highest:g}: at {HIGH:g} and above, softened distributions differ by less than float32 can hold. A loss "
            "that multiplies by the squared temperature, such as kl, then reports rounding errors, even negative values. Use a "
            "lower temperature, or a squared error between the logits, which is the limit of a high one",
            stacklevel=2,
        )

    def _look_at(self, found: float | Tensor, *, waits: bool) -> None:
        """``warn_if_high`` for scheduled temperatures; those on an accelerator are read only if it ``waits``."""
        if not isinstance(found, Tensor):
            self.warn_if_high(found)
        elif (found.is_cpu or waits) and found.numel() and not found.is_meta and not torch.compiler.is_compiling():
            self.warn_if_high(found.max().item())

    def _checked(self, found: Any, items: torch.Size) -> float | Tensor:
        if isinstance(found, Tensor):
            if found.dim() and found.shape != items:
                raise ShapeError(
                    f"{self.owner} returned temperatures {list(found.shape)} for items {list(items)}",
                    field="temperature_scheduler",
                )
            return found.detach().clamp(min=MINIMUM)
        if isinstance(found, (int, float)) and not math.isnan(found):
            return max(float(found), MINIMUM)
        raise SignatureError(
            f"{self.owner} must return a tensor over items or a number, got {found!r}", field="temperature_scheduler"
        )
