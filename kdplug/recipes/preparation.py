"""Batches on their way through a task that makes some of them anew."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import Task
from kdplug.contracts.task_option import PreparesBatches
from kdplug.engine.mode import modes
from kdplug.errors import ConfigError


class Made(NamedTuple):
    """How many of ``batches`` were made anew."""

    anew: int
    batches: int

    def __str__(self) -> str:
        return f"{self.anew} of {self.batches} batches ({self.anew / max(self.batches, 1):.1%})"


class Preparation:
    """Hands each batch to the task, with the student in eval mode and without gradient, and counts what it makes anew."""

    def __init__(self, task: PreparesBatches, student: nn.Module) -> None:
        self._task = task
        self._student = student
        self._anew = 0
        self._batches = 0

    def __call__(self, batch: Any) -> Any:
        """What both models are shown."""
        with modes(evaluating=self._student), torch.no_grad():
            found = self._task.prepare_batch(batch, self._student)
        self._batches += 1
        self._anew += found is not batch
        return found

    def counted(self) -> Made:
        """What there was since the last call."""
        found = Made(self._anew, self._batches)
        self._anew = self._batches = 0
        return found


def preparation(task: Task, student: nn.Module) -> Preparation | None:
    """What batches go through, ``None`` where the task leaves them as they are."""
    return Preparation(task, student) if isinstance(task, PreparesBatches) and task.prepares_batches else None


def check_uncached(recipe: Recipe, task: Task) -> None:
    """Raises: ``ConfigError`` where the teacher is to be asked before the batches are made."""
    if isinstance(task, PreparesBatches) and task.prepares_batches and recipe.distillation.is_caching_logits:
        raise ConfigError(
            f"task {recipe.task.name!r} makes batches with the student while it is trained, so no cache can hold what the teacher "
            "says of them. Leave the cache out, or the setting of the task that asks for such batches",
            field="distillation.is_caching_logits",
        )
