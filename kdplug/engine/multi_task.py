"""Combine the loaders of several tasks into one stream, and their teachers into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from kdplug.contracts.outputs import Tagged
from kdplug.engine.accumulation_batches import AccumulationBatches
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import Adaptor
from kdplug.errors import KdplugError, RunError

if TYPE_CHECKING:
    from kdplug.objective.task_objective import TaskObjective


Postprocessor = Callable[[Any], Any]


class MultiTaskLoader:
    """An endless stream of batches, each drawn from one task's loader and tagged with the task.

    Tasks are drawn according to ``shares``, which add up to 1, from a private generator. With the same ``seed`` every
    process draws the same tasks. Torch's global random state is neither read nor changed. A loader that ends is started
    again.
    """

    def __init__(
        self,
        loaders: Mapping[str, Iterable[Any]],
        shares: Mapping[str, float],
        seed: int,
        postprocessors: Mapping[str, Postprocessor] | None = None,
    ) -> None:
        self.loaders = dict(loaders)
        self.shares = dict(shares)
        self.seed = seed
        self.postprocessors = dict(postprocessors or {})
        self._draws = torch.Generator().manual_seed(seed)
        self._windows = {
            task: AccumulationBatches(loader, 1, None, self.postprocessors.get(task))
            for task, loader in self.loaders.items()
        }

    def sharded(self, shard: Callable[[Iterable[Any]], Iterable[Any]]) -> MultiTaskLoader:
        """Return a stream with the same draws over this process's share of each loader."""
        loaders = {task: shard(loader) for task, loader in self.loaders.items()}
        return MultiTaskLoader(loaders, self.shares, self.seed, self.postprocessors)

    def examples(self) -> list[Tagged]:
        """Return the first batch of each task without consuming it."""
        found = []
        for task, windows in self._windows.items():
            with _of(task):
                found.append(Tagged(task, windows.peek()))
        return found

    def position(self) -> dict[str, Any]:
        """Return the position of the draws and of each task's loader."""
        tasks = {task: windows.position() for task, windows in self._windows.items()}
        return {"draws": self._draws.get_state(), "tasks": tasks}

    def seek(self, position: dict[str, Any]) -> None:
        """Move to the ``position`` saved by another stream over the same loaders.

        Raises: ``RunError`` that names the task whose loader has fewer batches than were taken.
        """
        self._draws.set_state(position["draws"])
        for task, windows in self._windows.items():
            with _of(task):
                windows.seek(position["tasks"][task])

    def mark(self) -> dict[str, Any]:
        """Return the state of the draws and of each task's loader before the first step, for ``rewind``."""
        return {"draws": self._draws.get_state(), "tasks": {task: one.mark() for task, one in self._windows.items()}}

    def rewind(self, mark: dict[str, Any]) -> None:
        """Return to the state of ``mark``."""
        self._draws.set_state(mark["draws"])
        for task, windows in self._windows.items():
            windows.rewind(mark["tasks"][task])

    def __iter__(self) -> Iterator[Tagged]:
        """Raise a ``RunError`` that names the task whose loader is empty or can be iterated only once."""
        tasks, streams = list(self._windows), {task: iter(windows) for task, windows in self._windows.items()}
        shares = torch.tensor([self.shares[task] for task in tasks], dtype=torch.float64)
        while True:
            task = tasks[int(torch.multinomial(shares, 1, generator=self._draws))]
            with _of(task):
                (batch,) = next(streams[task])
            yield Tagged(task, batch, self._windows[task].epoch)


@contextmanager
def _of(task: str) -> Iterator[None]:
    """Prefix errors of a task's loader with the task."""
    try:
        yield
    except RunError as error:
        raise error.at("dataloaders", task) from error.__cause__


def shares_of(examples: Mapping[str, int | None], tau: float) -> dict[str, float]:
    """Return the probability of each task, proportional to ``examples ** tau``; uniform if a count is unknown.

    ``tau`` 1 draws each example equally often, 0 each task.

    Raises: ``RunError`` for a task without examples.
    """
    empty = next((task for task, count in examples.items() if count == 0), None)
    if empty is not None:
        raise RunError("the dataloader is empty", field=f"dataloaders.{empty}")
    known = [count for count in examples.values() if count is not None]
    if len(known) < len(examples):
        return dict.fromkeys(examples, 1 / len(examples))
    largest = max(known)
    weights = {task: (count / largest) ** tau for task, count in zip(examples, known, strict=True)}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def example_count(loader: Iterable[Any]) -> int | None:
    """Return the number of examples (not batches) in one pass over a ``DataLoader``, or ``None`` if unknown."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:  # without one, each item is a batch
        return None
    for counted in (loader.sampler, loader.dataset):
        try:
            return len(counted)  # type: ignore[arg-type]
        except TypeError:
            continue
    return None


class TaskAdaptor:
    """Applies each task's adaptor for one side and tags the result with the task."""

    def __init__(self, adaptors: Mapping[str, Adaptor | None]) -> None:
        self.adaptors = dict(adaptors)

    def of(self, task: str) -> Adaptor | None:
        """Return the adaptor of one task, if it has one."""
        return self.adaptors[task]

    def __call__(self, batch: Tagged, outputs: Any) -> Tagged:
        adaptor = self.adaptors[batch.task]
        return Tagged(batch.task, outputs if adaptor is None else adaptor(batch.value, outputs))


class TaskTeachers:
    """The teachers of each task. Only those of the batch's task run."""

    def __init__(self, teachers: Mapping[str, TeacherSide]) -> None:
        self.teachers = dict(teachers)
        self.model: nn.Module = nn.ModuleList(teacher.model for teacher in self.teachers.values())

    def __call__(
        self,
        batch: Tagged,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Tagged:
        """Return the outputs for the objective of the batch's task. Errors are prefixed with the task."""
        try:
            return Tagged(batch.task, self.teachers[batch.task](batch.value, model_args, cache, precision))
        except KdplugError as error:
            raise error.at(batch.task) from error.__cause__

    def to(self, device: torch.device) -> None:
        for teacher in self.teachers.values():
            teacher.to(device)

    @contextmanager
    def hooked(self, objective: TaskObjective) -> Iterator[None]:
        with ExitStack() as stack:
            for task, teacher in self.teachers.items():
                stack.enter_context(teacher.hooked(objective.of(task)))
            yield

    @contextmanager
    def frozen(self, student: nn.Module | None = None) -> Iterator[None]:
        with ExitStack() as stack:
            for teacher in self.teachers.values():
                stack.enter_context(teacher.frozen(student))
            yield
