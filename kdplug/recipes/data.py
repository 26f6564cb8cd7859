"""The loaders of a recipe: each draws its order from the recipe's seed and from nothing else."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from kdplug.contracts.task import Part, Task
from kdplug.errors import RunError
from kdplug.objective.field import below


def training_loader(
    task: Task, part: Part, *, batch_size: int, seed: int, like: Part, workers: int = 0
) -> DataLoader[Any]:
    """Shuffled batches of one part. A pass holds as many examples as the part ``like``.

    Where ``part`` has fewer, it is gone through several times in one pass, each time in a new order: two loaders that are
    ``like`` the same part give equally many batches of equal sizes.

    Raises: ``RunError`` where a part is empty.
    """
    data = _sized(task, part)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(data, num_samples=len(_sized(task, like)), generator=generator)
    return DataLoader(
        data, batch_size=batch_size, sampler=sampler, collate_fn=task.collate, generator=generator, num_workers=workers
    )


def test_loader(task: Task, *, batch_size: int) -> DataLoader[Any]:
    """The test part in its own order. Going through it leaves torch's global generator as it was.

    Raises: ``RunError`` where it is empty.
    """
    generator = torch.Generator().manual_seed(0)
    return DataLoader(_sized(task, "test"), batch_size=batch_size, collate_fn=task.collate, generator=generator)


def _sized(task: Task, part: Part) -> Any:
    with below("task"):
        data = task.data(part)
    if not isinstance(data, Sized):
        raise RunError(f"the task's data({part!r}) must have a length, and {type(data).__name__} has none")
    if len(data) == 0:
        raise RunError(f"the task's data({part!r}) is empty")
    return data
