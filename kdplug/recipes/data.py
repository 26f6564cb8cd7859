"""Build the data loaders of a recipe from the parts of its task's data."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from kdplug.config.error_path import prefixed
from kdplug.contracts.task import Part, Task
from kdplug.engine.observe.activity import busy
from kdplug.errors import KdplugError, RunError


def training_loader(
    task: Task, part: Part, *, batch_size: int, seed: int, like: Part, workers: int = 0
) -> DataLoader[Any]:
    """Return shuffled batches of one part; one pass yields as many examples as the part ``like`` has.

    A smaller ``part`` is repeated within the pass, each time in a new order, so two loaders ``like`` the same part
    yield the same number of batches of the same sizes.

    Raises: ``RunError`` if a part is empty.
    """
    data = sized(task, part)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(data, num_samples=len(sized(task, like)), generator=generator)
    return DataLoader(
        data, batch_size=batch_size, sampler=sampler, collate_fn=task.collate, generator=generator, num_workers=workers
    )


def evaluation_loader(task: Task, data: Any, *, batch_size: int) -> DataLoader[Any]:
    """Return the examples of ``data`` in order. Iterating it does not touch torch's global generator."""
    generator = torch.Generator().manual_seed(0)
    return DataLoader(data, batch_size=batch_size, collate_fn=task.collate, generator=generator)


def sized(task: Task, part: Part) -> Any:
    """Return one part of the data.

    Raises: ``RunError`` if it is empty or has no length, or if the task has no validation part.
    """
    with prefixed("task"), busy("Reading the data"):
        try:
            data = task.data(part)
        except (KeyError, ValueError) as error:
            if part != "validation" or isinstance(error, KdplugError):
                raise
            raise RunError(
                f"data('validation') failed with {type(error).__name__}: {error}. The evaluations during training need "
                "this part. Make the task return it, or set training.evaluations to 0"
            ) from error
    if not isinstance(data, Sized):
        raise RunError(f"the task's data({part!r}) must have a length, but {type(data).__name__} has none")
    if len(data) == 0:
        without = ". Set training.evaluations to 0 to train without evaluations" if part == "validation" else ""
        raise RunError(f"the task's data({part!r}) is empty{without}")
    return data
