"""Evaluation during training: metrics, best checkpoint, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.engine.accumulation_batches import generators
from kdplug.engine.forward_state import modes, random_state_kept
from kdplug.engine.training_module import TrainingModule, split, student_outputs, to_device
from kdplug.errors import ConfigError, did_you_mean
from kdplug.objective.batch import gathered


class Metric(Protocol):
    """The torchmetrics interface: updated with logits and labels, batch by batch."""

    def update(self, *arguments: Any, **more: Any) -> None: ...

    def compute(self) -> Any: ...

    def reset(self) -> None: ...

    def to(self, device: Any) -> Any: ...


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """Evaluation settings of a run: what to measure, how often, and how to act on the result.

    Pass ``dataloader`` and ``metrics``, a mapping of names to torchmetrics metrics, which receive the student's logits
    and the labels from its adaptor (first head); or pass ``function``, called as ``function(model)`` in eval mode,
    which returns metrics by name. ``every`` counts optimizer steps. ``times`` is the number of evaluations instead,
    spread evenly over the run, the last one after the last step. Without both, each regular checkpoint is evaluated.

    ``best`` names the metric that ranks checkpoints (``mode``: ``max`` or ``min``). A new best is saved as a
    checkpoint, which is kept until there is a better one. The run ends after ``patience`` evaluations without a new
    best. Every process evaluates all the data; with several processes the value of ``best`` in the main process is
    used.

    Raises: ``ConfigError`` for conflicting arguments.
    """

    dataloader: Iterable[Any] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    function: Callable[[nn.Module], Mapping[str, float]] | None = None
    every: int | None = None
    times: int | None = None
    best: str | None = None
    mode: Literal["max", "min"] = "max"
    patience: int | None = None

    def __post_init__(self) -> None:
        if (self.function is None) == (self.dataloader is None) or bool(self.metrics) != (self.dataloader is not None):
            raise ConfigError("pass either a dataloader with metrics, or a function", field="evaluation")
        if self.mode not in ("max", "min"):
            raise ConfigError(f"must be 'max' or 'min', got {self.mode!r}", field="evaluation.mode")
        for name in ("every", "times", "patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"must be a whole number of at least 1, got {value!r}", field=f"evaluation.{name}")
        if self.every is not None and self.times is not None:
            raise ConfigError("cannot be combined with every. Pass one of the two", field="evaluation.times")
        if self.patience is not None and self.best is None:
            raise ConfigError("needs 'best': the name of the metric that must improve", field="evaluation.patience")
        if self.metrics and self.best is not None:
            self._check_best(self.metrics)

    def is_due(self, step: int, total_steps: int, *, saves: bool) -> bool:
        """Return whether the student is evaluated after ``step`` of ``total_steps``; ``saves``: a regular checkpoint is due."""
        if self.times is not None:
            return step * self.times // total_steps > (step - 1) * self.times // total_steps
        return step % self.every == 0 if self.every else saves

    def measure(
        self,
        pair: TrainingModule,
        model_args: Mapping[str, Any],
        device: torch.device,
        *,
        watched: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> dict[str, float]:
        """Evaluate the student. Random state and buffers are unchanged afterwards.

        ``watched`` yields the batches of a loader and may report progress.

        Raises: ``ConfigError`` if ``best`` is not among the results; ``OutputsError`` if logits or labels are missing.
        """
        sources = () if self.dataloader is None else generators(self.dataloader)
        with random_state_kept(sources), modes(training=None, evaluating=pair.student), torch.no_grad():
            found = self.function(pair.student) if self.function else self._over_data(pair, model_args, device, watched)
        values = {name: float(value) for name, value in found.items()}
        self._check_best(values)
        return values

    def _over_data(
        self,
        pair: TrainingModule,
        model_args: Mapping[str, Any],
        device: torch.device,
        watched: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> dict[str, Any]:
        for metric in self.metrics.values():
            metric.to(device)
            metric.reset()
        for batch in watched(self.dataloader or ()):
            part = to_device(split(batch).student, device)
            raw = student_outputs(None, pair.student, pair.adaptor, pair.objective, part, model_args)
            outputs = Outputs.read(raw, "student")
            if outputs.logits is None or outputs.labels is None:
                lacking = "logits" if outputs.logits is None else "labels"
                raise ConfigError(
                    f"metrics need logits and labels, but the student's adaptor returned no {lacking}. "
                    "Return both from the adaptor, or pass a function instead of metrics",
                    field="evaluation",
                )
            for metric in self.metrics.values():
                logits = gathered(outputs.logits[0])
                whole = logits.dense() if isinstance(logits, FactoredLogits) else logits  # a metric reads a tensor
                metric.update(whole, outputs.labels[0])
        return {name: metric.compute() for name, metric in self.metrics.items()}

    def _check_best(self, names: Iterable[str]) -> None:
        if self.best is not None and self.best not in names:
            raise ConfigError(
                f"unknown metric {self.best!r}. Metrics of the evaluation: {', '.join(names) or 'none'}."
                f"{did_you_mean(self.best, names)}",
                field="evaluation.best",
            )


@dataclass(slots=True)
class Standing:
    """The best evaluation so far and the number of evaluations since."""

    value: float | None = None
    step: int | None = None
    since: int = 0

    def take(self, value: float, step: int, mode: str) -> bool:
        """Record an evaluation and return whether it is the best. ``nan`` never is."""
        better = not math.isnan(value) and (
            self.value is None or (value > self.value if mode == "max" else value < self.value)
        )
        if better:
            self.value, self.step, self.since = value, step, 0
        else:
            self.since += 1
        return better

    def to_data(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step, "since": self.since}
