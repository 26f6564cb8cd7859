"""Metrics, speed and size of a recipe's models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader

from kdplug.contracts.task import AnswersWhole, CountsUnits, Task
from kdplug.contracts.tree import tensors
from kdplug.engine.forward_state import modes
from kdplug.engine.observe.activity import busy, counted
from kdplug.engine.training_module import call, to_device
from kdplug.errors import RunError
from kdplug.recipes.task import OnPolicyCounts
from kdplug.report.table import Line

_ROUNDS = 15
_FEWEST_ROUNDS = 3
_LONGEST_SECONDS = 5.0
_ROUND_SECONDS = 0.02


def evaluate(task: Task, model: nn.Module, loader: Iterable[Any]) -> dict[str, float]:
    """Evaluate ``model`` with the task, in eval mode and without gradient. Train and eval modes are restored.

    Raises: ``RunError`` if the task's own metric is missing, or a value is not finite.
    """
    total = len(loader) if isinstance(loader, Sized) else None
    with busy("Evaluating"), modes(evaluating=model), torch.no_grad():
        batches = counted(_on_device(model, loader), "Evaluating", total=total)
        found = {name: float(value) for name, value in task.evaluate(model, batches).items()}
    if task.metric not in found or not all(map(math.isfinite, found.values())):
        raise RunError(
            f"the task's evaluate must return a dict of finite values that includes the task's metric {task.metric!r}, got {found}"
        )
    return found


EVAL_BYTES = 1 << 30
"""Budget for a model's outputs for one batch of an evaluation."""
_MOST_EXAMPLES = 256
_TRIED = 64


def eval_bytes(task: Task, model: nn.Module) -> int:
    """Measure the size in bytes of a model's full outputs for one test example, the longest of the first 64."""
    data: Any = task.data("test")
    with busy("Measuring the size of outputs"), modes(evaluating=model), torch.no_grad():
        batches = [task.collate([data[place]]) for place in range(min(_TRIED, len(data)))]
        longest = max(batches, key=lambda batch: sum(tensor.nbytes for tensor in tensors(batch)))
        (batch,) = _on_device(model, [longest])
        return sum(tensor.nbytes for tensor in tensors(_asker(task)(model, batch)))


def eval_batch_size(example_bytes: int) -> int:
    """Return the default batch size: the largest power of two up to 256 whose outputs fit in ``EVAL_BYTES``."""
    fitting = max(1, min(_MOST_EXAMPLES, EVAL_BYTES // max(1, example_bytes)))
    return 1 << (fitting.bit_length() - 1)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_on_disk(model: nn.Module) -> int:
    """Return the size in bytes of the model as safetensors, without the header; shared memory counts once."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


def unit_of(task: Task) -> str:
    """Return the unit of a task's throughput."""
    return task.unit if isinstance(task, CountsUnits) else "examples"


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of a model's forward pass in eval mode: seconds per example, and the task's units per second."""

    seconds_per_example: float
    units_per_second: float


def measure_speed(task: Task, models: Sequence[nn.Module], loader: DataLoader[Any]) -> list[Speed]:
    """Measure each model on the first examples of the loader's dataset, one batch of them.

    The models take turns, and the minimum over the rounds is reported: other load on the machine only adds time, and
    load that recurs can hit the same model in most rounds, which biases the median but not the minimum.
    """
    with busy("Measuring the speed of the models"):
        return _measured(task, models, loader)


def _measured(task: Task, models: Sequence[nn.Module], loader: DataLoader[Any]) -> list[Speed]:
    size = min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]
    assert loader.collate_fn is not None
    batch = loader.collate_fn([loader.dataset[index] for index in range(size)])
    units = task.count(batch) if isinstance(task, CountsUnits) else size
    ask = _asker(task)
    timers = [_timer(ask, model, batch) for model in models]
    with modes(evaluating=nn.ModuleList(models)), torch.no_grad():
        once = [timer.timeit(3).mean for timer in timers]
        numbers = [max(1, round(_ROUND_SECONDS / seconds)) for seconds in once]
        count = rounds_for(sum(number * seconds for number, seconds in zip(numbers, once, strict=True)))
        rounds = [
            [timer.timeit(number).mean for timer, number in zip(timers, numbers, strict=True)] for _ in range(count)
        ]
    least = [min(times) for times in zip(*rounds, strict=True)]
    return [Speed(seconds / size, units / seconds) for seconds in least]


def rounds_for(seconds: float) -> int:
    """Return the number of rounds to measure if one takes ``seconds``; fewer if they are slow."""
    return max(_FEWEST_ROUNDS, min(_ROUNDS, int(_LONGEST_SECONDS / seconds)))


def _asker(task: Task) -> Callable[[nn.Module, Any], Any]:
    """Return the function that runs a model with full outputs."""
    return task.answer if isinstance(task, AnswersWhole) else _ask


def _ask(model: nn.Module, batch: Any) -> Any:
    return call(model, batch, {})


def _timer(ask: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> Timer:
    names = {"ask": ask, "model": model, "batch": next(_on_device(model, [batch]))}
    return Timer("ask(model, batch)", globals=names, num_threads=torch.get_num_threads())


def _on_device(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    return (to_device(batch, device) for batch in batches)


METRICS = "metrics.json"
CURVES = "curves.png"

DISTILLED = "student, distilled"


@dataclass(frozen=True, slots=True)
class Figures:
    """A model's metrics on the test part, parameters, seconds per example, bytes on disk, and units per second."""

    metrics: dict[str, float]
    parameters: int
    seconds_per_example: float
    bytes: int
    units_per_second: float

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        return {
            **self.metrics,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "seconds_per_example": self.seconds_per_example,
            "units_per_second": self.units_per_second,
        }


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """Results of the three models, by the same ``metric`` on the same test examples, and the output folder.

    ``unit`` is the unit of ``units_per_second``. ``distilled`` and ``baseline`` are the same student, from the same
    initial weights, after ``steps`` optimizer steps with and without a teacher. ``made`` counts the distillation
    batches that the task replaced with new ones; ``None`` if the task does not prepare batches.
    """

    metric: str
    teacher: Figures
    distilled: Figures
    baseline: Figures
    steps: int
    output_dir: Path
    is_lower_better: bool = False
    unit: str = "examples"
    made: OnPolicyCounts | None = None

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        return {
            "metric": self.metric,
            "is_lower_better": self.is_lower_better,
            "unit": self.unit,
            "optimizer_steps": self.steps,
            **({} if self.made is None else {"batches_generated": self.made._asdict()}),
            "teacher": self.teacher.to_data(),
            "student_distilled": self.distilled.to_data(),
            "student_without_distillation": self.baseline.to_data(),
        }

    def lines(self) -> list[Line]:
        """Return the rows of the final table."""
        named = {
            "teacher": self.teacher,
            DISTILLED: self.distilled,
            "student, without distillation": self.baseline,
        }
        return [
            Line(
                name,
                figures.metrics[self.metric],
                figures.parameters,
                figures.seconds_per_example,
                figures.bytes,
                figures.units_per_second,
            )
            for name, figures in named.items()
        ]

    @property
    def title(self) -> str:
        """The metric as a column or axis title."""
        return f"{self.metric} (lower is better)" if self.is_lower_better else self.metric

    def levels(self) -> dict[str, float]:
        """Return the metric of the teacher and the baseline."""
        return {line.model: line.metric for line in self.lines() if line.model != DISTILLED}
