"""Several tasks' loaders as one stream, and their teachers as one."""

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

    Tasks are drawn by ``shares``, which add up to 1, from a generator of the stream's own: with one ``seed`` every process
    draws the same tasks, and torch's global random state is neither read nor moved. A loader that ends is started again.
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
        """The same draws from this process's share of each loader."""
        loaders = {task: shard(loader) for task, loader in self.loaders.items()}
        return MultiTaskLoader(loaders, self.shares, self.seed, self.postprocessors)

    def examples(self) -> list[Tagged]:
        """The first batch of each task, which the stream will still hold."""
        found = []
        for task, windows in self._windows.items():
            with _of(task):
                found.append(Tagged(task, windows.peek()))
        return found

    def position(self) -> dict[str, Any]:
        """Where the draws are, and each task's loader."""
        tasks = {task: windows.position() for task, windows in self._windows.items()}
        return {"draws": self._draws.get_state(), "tasks": tasks}

    def seek(self, position: dict[str, Any]) -> None:
        """Go to where another stream over the same loaders said it was.

        Raises: ``RunError`` that names the task whose loader has fewer batches than were taken.
        """
        self._draws.set_state(position["draws"])
        for task, windows in self._windows.items():
            with _of(task):
                windows.seek(position["tasks"][task])

    def __iter__(self) -> Iterator[Tagged]:
        """Raises: ``RunError`` that names the task whose loader is empty or can be walked through just once."""
        tasks, streams = list(self._windows), {task: iter(windows) for task, windows in self._windows.items()}
        shares = torch.tensor([self.shares[task] for task in tasks], dtype=torch.float64)
        while True:
            task = tasks[int(torch.multinomial(shares, 1, generator=self._draws))]
            with _of(task):
                (batch,) = next(streams[task])
            yield Tagged(task, batch)


@contextmanager
def _of(task: str) -> Iterator[None]:
    """Put the task in front of what its loader raises."""
    try:
        yield
    except RunError as error:
        raise error.at("dataloaders", task) from error.__cause__


def shares_of(examples: Mapping[str, int | None], tau: float) -> dict[str, float]:
    """How often each task is drawn: by ``examples ** tau``, equally often where a number is not known.

    ``tau`` 1 draws each example equally often, 0 each task.

    Raises: ``RunError`` for a task without examples.
    """
    empty = next((task for task, count in examples.items() if count == 0), None)
    if empty is not None:
        raise RunError("the dataloader is empty: it has no examples", field=f"dataloaders.{empty}")
    known = [count for count in examples.values() if count is not None]
    if len(known) < len(examples):
        return dict.fromkeys(examples, 1 / len(examples))
    largest = max(known)
    weights = {task: (count / largest) ** tau for task, count in zip(examples, known, strict=True)}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def example_count(loader: Iterable[Any]) -> int | None:
    """Examples (not batches) in one pass over a ``DataLoader``, ``None`` where that cannot be told."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:  # without one, each item is a batch
        return None
    for counted in (loader.sampler, loader.dataset):
        try:
            return len(counted)  # type: ignore[arg-type]
        except TypeError:
            continue
    return None


class TaskAdaptor:
    """Each task's adaptor of one side; what it returns is tagged with the task."""

    def __init__(self, adaptors: Mapping[str, Adaptor | None]) -> None:
        self.adaptors = dict(adaptors)

    def __call__(self, batch: Tagged, outputs: Any) -> Tagged:
        adaptor = self.adaptors[batch.task]
        return Tagged(batch.task, outputs if adaptor is None else adaptor(batch.value, outputs))


class TaskTeachers:
    """Each task's teacher, or teachers. Only those of the batch's task are asked."""

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
        """What the objective of the batch's task reads. Raises: what the task's teacher raises, with the task in front."""
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
