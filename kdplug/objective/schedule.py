"""Weights and temperatures as functions of progress."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.errors import ConfigError, KdplugError, ShapeError, SignatureError
from kdplug.host import registry
from kdplug.host.component import Component
from kdplug.host.spec import ComponentSpec
from kdplug.objective.batch import Batch


@dataclass(frozen=True, slots=True)
class Schedule:
    """``base`` times the scheduler's factor, or constant ``base`` without a scheduler."""

    base: float
    scheduler: Callable[..., Any] | None = None
    inputs: tuple[str, ...] = ()
    owner: str = ""

    def at(self, progress: float, step: int = 0, total_steps: int = 0) -> float:
        """Return the weight at ``progress`` in [0, 1].

        Raises: ``SignatureError`` if the scheduler returns anything but a finite number.
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
    """Build the schedule of a weight. ``field`` is the config key of its scheduler, for messages."""
    if spec is None:
        return Schedule(float(weight))
    try:
        component = registry.weight_schedulers.build(spec)
    except KdplugError as error:
        raise error.at(field) from error.__cause__
    try:
        check_stateless(component)
    except SignatureError as error:
        raise error.at(field) from None
    return Schedule(float(weight), component.target, component.inputs, component.entry.qualified)


def check_stateless(component: Component) -> None:
    """Raise ``SignatureError`` for a weight scheduler with parameters or buffers."""
    target = component.target
    has_state = isinstance(target, nn.Module) and bool(target.state_dict())
    if has_state or _loose_tensors(target):
        raise SignatureError(
            f"{component.entry.qualified} {'is a module with' if has_state else 'has'} parameters or buffers, but a weight "
            "scheduler is a function of progress: it is neither trained nor saved. Compute the factor from progress alone"
        )


def _loose_tensors(target: Any) -> list[str]:
    """Return attributes with trainable tensors that no module registers: they would be neither trained nor saved."""
    parts = target.named_modules() if isinstance(target, nn.Module) else [("", target)]
    return [
        ".".join(filter(None, (path, name)))
        for path, part in parts
        for name, value in getattr(part, "__dict__", {}).items()
        if any(one.requires_grad for one in _tensors(value))
    ]


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, nn.Module):
        return value.parameters()
    return [value] if isinstance(value, Tensor) else []


def checked_progress(progress: float) -> float:
    """Return ``progress`` unchanged.

    Raises: ``ConfigError`` if it is not in [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ConfigError(f"must be in [0, 1], got {progress!r}", field="progress")
    return progress


MINIMUM = 1e-2
"""Lower bound of scheduled temperatures.

A temperature of 0 would divide by zero, and a negative one inverts the distribution.
"""

HIGH = 1e3
"""At this temperature and above, float32 lacks the precision for a divergence times the squared temperature."""


class Temperature(nn.Module):
    """A fixed temperature, or a scheduled one: a number, or one per item if the scheduler reads the logits.

    This is a module, because a scheduler may be a module: its parameters are trained, and its buffers are moved and saved
    with the objective.
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
        if loose := _loose_tensors(component.target):
            raise SignatureError(
                f"{self.owner} keeps tensors in plain attributes ({', '.join(loose)}), which would be neither trained nor saved. "
                "Derive the class from torch.nn.Module, and make each tensor an nn.Parameter",
                field="temperature_scheduler",
            )

    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the scheduler, by name."""
        return {name.removeprefix("scheduler."): one for name, one in self.named_parameters() if one.requires_grad}

    def unreached(self, value: Tensor) -> list[str]:
        """Return the names of trainable parameters that get no gradient from ``value``. The graph is walked, not run."""
        names = {id(one): name for name, one in self.trained().items()}
        waiting, seen = [value.grad_fn], set()
        while waiting and names:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)  # holds the node, without which another one could get its identity
            names.pop(id(getattr(node, "variable", None)), None)
            waiting += [following for following, _ in node.next_functions]
        return list(names.values())

    def of(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> float | Tensor:
        """Return the temperature of a pair of logits, at least ``MINIMUM``.

        It has a gradient if the scheduler computed it from its own parameters; the logits are detached.

        Shapes: logits ``[*items, classes]`` to a number or ``[*items]``.
        Raises: ``ShapeError``, ``SignatureError`` for an invalid return value of the scheduler.
        """
        if self.scheduler is None:
            return self.base
        logits = {"student_logits": student_logits.detach(), "teacher_logits": teacher_logits}
        return self._scheduled(self.scheduler, logits, student_logits.shape[:-1], batch)

    def of_batch(self, batch: Batch) -> float | Tensor:
        """Return the temperature of a term without logits, such as a match, after ``check_reads_no_logits``."""
        return self.base if self.scheduler is None else self._scheduled(self.scheduler, {}, torch.Size(), batch)

    def check_reads_no_logits(self, owner: str) -> None:
        """Raise ``ConfigError`` if the scheduler reads logits, which a term with the loss ``owner`` does not have."""
        if read := [one for one in self.inputs if one in ("student_logits", "teacher_logits")]:
            raise ConfigError(
                f"{self.owner} computes temperatures from {' and '.join(read)}, but {owner} compares features "
                "without logits, and requests temperature. Set temperature_scheduler: none, or use a scheduler that "
                "requests no logits, or a loss that does not request temperature",
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
        found = self._checked(scheduler(*map(values.__getitem__, self.inputs)), items)
        if not self._has_warned:
            self._look_at(found, waits=batch.looks)
        return found

    def warn_if_high(self, highest: float) -> None:
        """Warn once about a temperature too high for float32."""
        if highest < HIGH or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"temperature {highest:g}: at {HIGH:g} and above, softened distributions differ by less than float32 "
            "precision. A loss that multiplies by the squared temperature, such as kl, then reports rounding errors, "
            "even negative values. Use a lower temperature, or a squared error between the logits, the limit of "
            "kl for high temperatures",
            stacklevel=2,
        )

    def _look_at(self, found: float | Tensor, *, waits: bool) -> None:
        """Call ``warn_if_high`` for scheduled temperatures; those on an accelerator are read only with ``waits``."""
        if not isinstance(found, Tensor):
            self.warn_if_high(found)
        elif (found.is_cpu or waits) and found.numel() and not found.is_meta and not torch.compiler.is_compiling():
            self.warn_if_high(found.detach().max().item())

    def _checked(self, found: Any, items: torch.Size) -> float | Tensor:
        if isinstance(found, Tensor):
            values: Tensor = found
            if values.dim() and values.shape != items and values.numel() == 1:
                values = values.reshape(())  # such as a parameter of shape (1,), the least that FSDP shards
            if values.dim() and values.shape != items:
                raise ShapeError(
                    f"{self.owner} returned temperatures of shape {list(found.shape)} for items of shape {list(items)}. It must "
                    "return a number, or a temperature for each item",
                    field="temperature_scheduler",
                )
            return values.clamp(min=MINIMUM)
        if isinstance(found, (int, float)) and not math.isnan(found):
            return max(float(found), MINIMUM)
        raise SignatureError(
            f"{self.owner} must return a tensor over items or a number, got {found!r}", field="temperature_scheduler"
        )
