"""Training on labels alone: how a teacher is fitted, and what the student would be without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdplug.config.recipe import RecipeTraining
from kdplug.config.training import TrainingConfig
from kdplug.distillers.identity import identity
from kdplug.distillers.trainer import supervised
from kdplug.engine.request import Request
from kdplug.engine.resume import Resume
from kdplug.engine.run import RunResult
from kdplug.engine.train import train
from kdplug.recipes.budget import Budget
from kdplug.recipes.optimizer import make_optimizer, make_schedule


def train_on_labels(
    model: nn.Module,
    adaptor: Callable[[Any, Any], Any],
    loader: DataLoader[Any],
    training: RecipeTraining,
    config: TrainingConfig,
    *,
    resume: Resume = None,
    resume_changed: bool = False,
) -> RunResult:
    """Train ``model`` as ``BasicTrainer`` does, but tell no plugin of the run and show no progress.

    Raises: ``OutputsError`` where the adaptor returns no ``losses``; ``RunError``.
    """
    request = Request(
        optimizer=make_optimizer(training, model.parameters()),
        dataloader=loader,
        num_epochs=training.num_epochs,
        num_steps=training.num_steps,
        max_grad_norm=training.max_grad_norm,
        resume=resume,
        resume_changed=resume_changed,
        identity=identity(config, {}),
        **make_schedule(training, Budget.of(training, loader).total_steps),
    )
    return train(supervised(model, adaptor), None, config, request, show_progress=False)
