"""Training on labels alone: how a teacher is fitted, and what the student would be without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from kdplug.config.recipe import RecipeTraining
from kdplug.config.training import TrainingConfig
from kdplug.distillers.trainer import supervised
from kdplug.engine.request import Request
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
) -> RunResult:
    """Train ``model`` as ``BasicTrainer`` does, but tell no plugin of the run and write no checkpoint.

    Raises: ``OutputsError`` where the adaptor returns no ``losses``; ``RunError``.
    """
    budget = Budget.of(training, loader)
    request = Request(
        optimizer=make_optimizer(training, model.parameters()),
        dataloader=loader,
        num_epochs=budget.epochs,
        max_grad_norm=training.max_grad_norm,
        **make_schedule(training, budget.total_steps),
    )
    quiet = config.model_copy(update={"ckpt_frequency": 0, "log_dir": None})
    return train(supervised(model, adaptor), None, quiet, request, show_progress=False)
