"""The optimizer and the learning rates that a recipe asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdplug.config.recipe import RecipeTraining
from kdplug.errors import ConfigError, did_you_mean


def make_optimizer(training: RecipeTraining, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimizer of the class in ``torch.optim`` that the recipe names.

    Raises: ``ConfigError`` where there is no such class, or it does not take ``lr`` and ``weight_decay``.
    """
    classes = {
        name: found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer
    }
    if training.optimizer not in classes:
        message = f"no optimizer {training.optimizer!r} in torch.optim.{did_you_mean(training.optimizer, classes)}"
        raise ConfigError(message, field="training.optimizer")
    make: Callable[..., Optimizer] = classes[training.optimizer]
    try:
        return make(parameters, lr=training.lr, weight_decay=training.weight_decay)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{training.optimizer} cannot be made: {error}", field="training.optimizer") from error


def make_schedule(training: RecipeTraining, total_steps: int) -> dict[str, Any]:
    """The arguments ``scheduler_class`` and ``scheduler_args`` of ``train``; none where the learning rate stays."""
    if training.lr_schedule == "none" and training.warmup == 0:
        return {}
    rule = partial(factor, schedule=training.lr_schedule, warmup=training.warmup, total_steps=total_steps)
    return {"scheduler_class": LambdaLR, "scheduler_args": {"lr_lambda": rule}}


def factor(step: int, *, schedule: str, warmup: float, total_steps: int) -> float:
    """What the learning rate is multiplied with once ``step`` optimizer steps are done.

    It rises linearly to 1 over the share ``warmup`` of the steps; from there it stays (``none``), falls linearly
    (``linear``) or falls along half a cosine (``cosine``), to 0 at ``total_steps``.
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return step / rising
    done = min(1.0, (step - rising) / max(1, total_steps - rising))
    if schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0
