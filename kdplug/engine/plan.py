"""How many optimizer steps a run has, and after which of them it saves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdplug.config.training import TrainingConfig
from kdplug.errors import ConfigError, RunError


@dataclass(frozen=True, slots=True)
class Plan:
    """The length of a run in optimizer steps.

    ``passes`` is how often the loader is walked through, ``None`` where it is cycled until the steps are done.
    """

    total_steps: int
    passes: int | None
    saves: frozenset[int] | range

    def is_save(self, step: int) -> bool:
        """Whether the student is saved once ``step`` optimizer steps are done."""
        return step in self.saves or (isinstance(self.saves, range) and step == self.total_steps)


def make_plan(
    loader: Iterable[Any], config: TrainingConfig, *, num_epochs: float | None = None, num_steps: int | None = None
) -> Plan:
    """The plan of a run over ``loader``: ``num_epochs`` passes (fractions count), or ``num_steps`` optimizer steps.

    Raises: ``ConfigError`` unless exactly one of the two is given and positive; ``RunError`` for epochs of a loader that has
    no length, or length 0.
    """
    if (num_epochs is None) == (num_steps is None):
        given = "neither is" if num_epochs is None else f"both are (num_epochs={num_epochs}, num_steps={num_steps})"
        raise ConfigError(f"give either num_epochs or num_steps; {given} given", field="train")
    if num_steps is not None:
        return _by_steps(_positive("num_steps", num_steps), config.ckpt_steps)
    epochs = _positive("num_epochs", num_epochs)
    batches = length(loader)
    if batches is None:
        raise RunError(
            f"num_epochs={num_epochs} needs a loader with a length, and {type(loader).__name__} has none "
            "(an IterableDataset without __len__?). Pass num_steps instead, or give it a length."
        )
    if batches == 0:
        raise RunError("the dataloader is empty: its length is 0, so there is nothing to train on")
    if config.ckpt_steps is not None:
        warnings.warn(
            f"ckpt_steps={config.ckpt_steps} has no effect with num_epochs; checkpoints follow ckpt_frequency",
            stacklevel=2,
        )
    steps = math.ceil(batches / config.gradient_accumulation_steps)
    return _by_epochs(epochs, steps, config.ckpt_frequency, config.ckpt_epoch_frequency)


def length(loader: Iterable[Any]) -> int | None:
    """Batches in one pass over ``loader``, or ``None`` where it cannot tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def _by_steps(num_steps: float, ckpt_steps: int | None) -> Plan:
    if num_steps != int(num_steps):
        raise ConfigError(f"must be a whole number of optimizer steps, got {num_steps}", field="num_steps")
    total = int(num_steps)
    every = ckpt_steps or total
    return Plan(total, None, range(every, total + 1, every))


def _by_epochs(epochs: float, steps: int, frequency: int, epoch_frequency: int) -> Plan:
    total = max(1, math.ceil(epochs * steps - 1e-9))  # 1e-9: 0.1 * 30 is 3.0000000000000004
    passes = math.ceil(total / steps)
    saves = {total} if frequency > 0 else set()
    for epoch in range(passes):
        if (epoch + 1) % epoch_frequency == 0 or epoch + 1 == passes:
            points = (steps * part // frequency for part in range(1, frequency + 1))
            saves.update(epoch * steps + point for point in points if point > 0)
    return Plan(total, passes, frozenset(step for step in saves if step <= total))


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"must be a positive number, got {value!r}", field=name)
    return value
