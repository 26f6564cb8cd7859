"""Metrics, predictions, speed and size of a recipe's models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader

from kdplug.contracts.task import AnswersWhole, CountsUnits, Predictions, PredictsExamples, Task
from kdplug.contracts.tree import tensors
from kdplug.engine.forward_state import modes
from kdplug.engine.observe.activity import busy, counted
from kdplug.engine.training_module import call, to_device
from kdplug.errors import ConfigError, RunError, did_you_mean

_ROUNDS = 15
_FEWEST_ROUNDS = 3
_LONGEST_SECONDS = 5.0
_ROUND_SECONDS = 0.02


def evaluate(task: Task, model: nn.Module, loader: Iterable[Any], metric: str) -> dict[str, float]:
    """Evaluate ``model`` with the task, in eval mode and without gradient. Train and eval modes are restored.

    Raises: ``RunError`` if ``metric`` is not among the results.
    """
    with busy("Evaluating"), modes(evaluating=model), torch.no_grad():
        found = task.evaluate(model, _counted(model, loader))
    return _checked(found, metric, task.metric, "evaluate")


def predict(task: Task, model: nn.Module, loader: DataLoader[Any], metric: str) -> Predictions:
    """Return the predictions for a part under the same conditions as ``evaluate``; without rows if the task has none.

    Raises: ``RunError`` if ``metric`` is not among the results, or the rows do not match the examples.
    """
    if not isinstance(task, PredictsExamples):
        return Predictions(evaluate(task, model, loader, metric), ())
    with busy("Evaluating"), modes(evaluating=model), torch.no_grad():
        found = task.predict(model, _counted(model, loader))
    metrics, rows = _checked(found.metrics, metric, task.metric, "predict"), list(found.rows)
    count = len(loader.dataset)  # type: ignore[arg-type]
    if len(rows) != count or not all("score" in row for row in rows):
        problem = f"{len(rows)} rows" if len(rows) != count else "a row without 'score'"
        raise RunError(
            f"the task's predict must return one row with a score for each of {count} examples; got {problem}"
        )
    return replace(found, metrics=metrics, rows=rows)


def _counted(model: nn.Module, loader: Iterable[Any]) -> Iterator[Any]:
    total = len(loader) if isinstance(loader, Sized) else None
    return counted(_on_device(model, loader), "Evaluating", total=total)


def _checked(found: Mapping[str, float], metric: str, own: str, method: str) -> dict[str, float]:
    values = {name: float(value) for name, value in found.items()}
    if own not in values:
        raise RunError(f"the task's {method} must return the metric {own!r}, got {values}")
    if metric not in values:
        raise ConfigError(
            f"the task has no metric {metric!r}.{did_you_mean(metric, values)} Its metrics: {', '.join(values)}",
            field="metric",
        )
    return values


EVAL_BYTES = 1 << 30
"""Budget for a model's outputs for one batch of an evaluation."""
_MOST_EXAMPLES = 256
_TRIED = 64


def eval_bytes(task: Task, model: nn.Module, data: Any) -> int:
    """Measure the size in bytes of a model's full outputs for one example of ``data``, the longest of the first 64."""
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


@dataclass(frozen=True, slots=True)
class Figures:
    """A model's parameters, seconds per example, bytes on disk, and units per second."""

    parameters: int
    seconds_per_example: float
    bytes: int
    units_per_second: float
