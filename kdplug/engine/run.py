"""The arguments, length, state and result of a training run."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from kdplug.config.training import TrainingConfig
from kdplug.engine.evaluation import Evaluation
from kdplug.errors import ConfigError, RunError
from kdplug.objective.report import LossReport


@dataclass(slots=True, eq=False)
class Run:
    """The state of a run that observers can read. Only ``step``, ``epoch`` and ``stop_reason`` change.

    ``step`` counts the completed optimizer steps out of ``total_steps``, ``epoch`` the completed passes over the data. ``model`` is the user's student, without
    wrappers.
    """

    model: nn.Module
    teacher: nn.Module | None
    objective: nn.Module
    optimizer: Optimizer
    total_steps: int
    output_dir: Path
    is_main: bool
    process_index: int
    num_processes: int
    step: int = 0
    epoch: int = 0
    stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """End the run after the current step, on every process, as early stopping does. The first reason is shown."""
        self.stop_reason = self.stop_reason or reason

    @property
    def progress(self) -> float:
        """The completed fraction of the run, in [0, 1]."""
        return min(1.0, self.step / self.total_steps)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a run: number of steps, last step's loss (detached), checkpoints, and duration.

    ``checkpoints`` are the weights of each checkpoint that this call wrote and that ``keep_last`` kept. ``best`` is the folder of the checkpoint with the best evaluation. ``skipped`` counts steps with a non-finite
    gradient. ``stop_reason`` is that of ``run.stop``.
    """

    step: int
    report: LossReport | None
    output_dir: Path
    checkpoints: tuple[Path, ...]
    seconds: float
    best: Path | None = None
    stopped_early: bool = False
    skipped: int = 0
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The length of a run in optimizer steps.

    ``passes`` is the number of passes over the loader, or ``None`` to cycle it until all steps are done.
    """

    total_steps: int
    passes: int | None
    saves: frozenset[int] | range

    def is_save(self, step: int) -> bool:
        """Return whether a checkpoint is saved after ``step`` optimizer steps."""
        return step in self.saves or (isinstance(self.saves, range) and step == self.total_steps)


def make_plan(
    loader: Iterable[Any], config: TrainingConfig, *, num_epochs: float | None = None, num_steps: int | None = None
) -> Plan:
    """Return the plan of a run: ``num_epochs`` passes over ``loader`` (may be fractional), or ``num_steps`` steps.

    Raises: ``ConfigError`` unless exactly one of the two is given and positive; ``RunError`` if epochs are given and
    the loader has no length, or length 0.
    """
    if (num_epochs is None) == (num_steps is None):
        given = "" if num_epochs is None else f", not both (num_epochs={num_epochs}, num_steps={num_steps})"
        raise ConfigError(f"pass num_epochs or num_steps{given}", field="train")
    if num_steps is not None:
        return _by_steps(_positive("num_steps", num_steps), config.ckpt_steps)
    epochs = _positive("num_epochs", num_epochs)
    batches = length(loader)
    if batches is None:
        raise RunError(
            f"num_epochs={num_epochs} needs a loader with a length, and {type(loader).__name__} has none "
            "(an IterableDataset without __len__?). Pass num_steps instead, or define its length."
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
    """Return the number of batches in one pass over ``loader``, or ``None`` if unknown."""
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


Callback = Callable[..., Any]
"""``callback(model=student, step=step)``, called after each checkpoint, on every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of one training run, as passed by the user.

    ``num_epochs`` may be fractional; ``num_steps`` counts optimizer steps. Clipping is disabled if ``max_grad_norm`` is
    ``None`` or at most 0. ``batch_postprocessor`` maps each batch before it is moved to the device. ``model_args`` are
    passed to teacher and student. ``evaluation`` configures evaluation during the run. ``resume`` is ``"auto"`` or a
    checkpoint folder; ``overwrite`` deletes the checkpoints of an earlier run. ``identity`` is plain data that must match the checkpoint's, unless ``resume_changed``.

    Raises: ``ConfigError`` for arguments that would otherwise cause an error during the run or be misinterpreted.
    """

    optimizer: Optimizer
    dataloader: Iterable[Any]
    num_epochs: float | None = None
    num_steps: int | None = None
    scheduler_class: Callable[..., Any] | None = None
    scheduler_args: Mapping[str, Any] | None = None
    scheduler: Any = None
    max_grad_norm: float | None = None
    callback: Callback | None = None
    batch_postprocessor: Callable[[Any], Any] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    resume: str | os.PathLike[str] | None = None
    resume_changed: bool = False
    overwrite: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("optimizer", self.optimizer, isinstance(self.optimizer, Optimizer), "a torch optimizer")
        for name in ("callback", "batch_postprocessor", "scheduler_class"):
            value = getattr(self, name)
            _check(name, value, value is None or callable(value), "a callable")
        _check("scheduler_args", self.scheduler_args, _is(Mapping, self.scheduler_args), "a mapping")
        _check("evaluation", self.evaluation, _is(Evaluation, self.evaluation), "a kdplug.Evaluation")
        steps = self.scheduler is None or callable(getattr(self.scheduler, "step", None))
        _check("scheduler", self.scheduler, steps, "a learning-rate scheduler, which has a step()")
        _check("max_grad_norm", self.max_grad_norm, _is_limit(self.max_grad_norm), "a number, or None")
        named = _is((str, os.PathLike), self.resume)
        _check("resume", self.resume, named, "'auto', a checkpoint folder, or None")
        for name in ("resume_changed", "overwrite"):
            value = getattr(self, name)
            _check(name, value, isinstance(value, bool), "true or false")
        if self.overwrite and self.resume is not None:
            raise ConfigError(
                "cannot be combined with resume: a resumed run keeps the existing checkpoints. Remove overwrite or resume",
                field="overwrite",
            )


def _check(field: str, value: object, is_fit: bool, wanted: str) -> None:
    if not is_fit:
        raise ConfigError(f"must be {wanted}, got {value!r}", field=field)


def _is(kinds: type | tuple[type, ...], value: object) -> bool:
    return value is None or isinstance(value, kinds)


def _is_limit(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value))
