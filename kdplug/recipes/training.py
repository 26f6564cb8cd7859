"""Training on labels alone, for a recipe's teacher and the control without one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.training import TrainingConfig
from kdplug.distillers.session import identity
from kdplug.distillers.trainer import supervised
from kdplug.engine.checkpoint.checkpoint import begin
from kdplug.engine.checkpoint.resume import Resume
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.observe.event import Actor, RunObserver
from kdplug.engine.run import Request, RunResult
from kdplug.engine.train import train
from kdplug.errors import ConfigError, RunError, did_you_mean
from kdplug.recipes.arm import (
    HISTORY,
    PREDICTIONS,
    RESULT,
    STAGE_RESULT,
    Arm,
    arm_folders,
    every_run,
    stage_folders,
)


@dataclass(frozen=True, slots=True)
class Budget:
    """Length of a training run in optimizer steps, and in passes over the loader (may be a fraction)."""

    total_steps: int
    epochs: float

    @classmethod
    def of(cls, training: RecipeTraining, loader: DataLoader[Any]) -> Budget:
        """Return the budget of a recipe over ``loader``; accumulated batches count as one step."""
        steps = math.ceil(len(loader) / training.gradient_accumulation_steps)
        if training.num_steps is not None:
            return cls(training.num_steps, training.num_steps / steps)
        assert training.num_epochs is not None
        return cls(training.num_epochs * steps, training.num_epochs)


def make_optimizer(training: RecipeTraining, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return an optimizer of the class in ``torch.optim`` that the recipe names.

    Raises: ``ConfigError`` if there is no such class, or it does not take ``lr`` and ``weight_decay``.
    """
    classes = {
        name: found
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer
    }
    if training.optimizer not in classes:
        message = f"torch.optim has no optimizer {training.optimizer!r}.{did_you_mean(training.optimizer, classes)}"
        raise ConfigError(message, field="training.optimizer")
    make: Callable[..., Optimizer] = classes[training.optimizer]
    try:
        return make(parameters, lr=training.lr, weight_decay=training.weight_decay)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{training.optimizer} cannot be built: {error}", field="training.optimizer") from error


def make_schedule(training: RecipeTraining, total_steps: int) -> dict[str, Any]:
    """Return ``scheduler_class`` and ``scheduler_args`` for ``train``; empty for a constant learning rate."""
    if training.lr_schedule == "none" and training.warmup == 0:
        return {}
    rule = partial(factor, schedule=training.lr_schedule, warmup=training.warmup, total_steps=total_steps)
    return {"scheduler_class": LambdaLR, "scheduler_args": {"lr_lambda": rule}}


def factor(step: int, *, schedule: str, warmup: float, total_steps: int) -> float:
    """Return the multiplier of the learning rate after ``step`` optimizer steps.

    It rises linearly to 1 over the fraction ``warmup`` of the steps. Then it stays at 1 (``none``), or decays to 0 at
    ``total_steps`` linearly (``linear``) or along half a cosine (``cosine``).
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return step / rising
    done = min(1.0, (step - rising) / max(1, total_steps - rising))
    if schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0


_SHOWN = 200


def check_writable(recipe: Recipe) -> None:
    """Raise ``RunError`` if a run could not create its folders: ``output_dir``, those of the arms, ``log_dir``, and the cache.

    Nothing is written.
    """
    output_dir, log_dir = Path(recipe.output_dir), recipe.training.log_dir
    for place in (output_dir, *(one.folder(output_dir) for one in every_run(recipe))):
        _check_folder(place, recipe.output_dir, "output_dir")
    if log_dir is not None:
        _check_folder(Path(log_dir), log_dir, "log_dir")
    check_cache_folder(recipe)


def check_cache_folder(recipe: Recipe) -> None:
    """Raise ``RunError`` if the folder of the teacher cache could not be created. One that exists may be read only."""
    cache = recipe.training.teacher_cache
    if cache is not None and not os.path.isdir(cache):  # noqa: PTH112  False if the name is too long
        _check_folder(Path(cache), cache, "teacher_cache")


def _check_folder(place: Path, given: str, field: str) -> None:
    if "\0" in given:
        raise RunError(f"{given[:_SHOWN]!r} is not a valid folder name: it contains NUL. Choose another", field=field)
    try:
        above = (place, *place.absolute().parents)
        there = next(folder for folder in above if folder.exists() or folder.is_symlink())
    except OSError as error:  # a name that is too long, or a folder above it that may not be read
        raise RunError(
            f"cannot use {given[:_SHOWN]!r}: {error.strerror}. Choose another folder", field=field
        ) from error
    if not there.exists():
        reason = f"{str(there)!r} is a broken link"
    elif not there.is_dir():
        reason = f"{str(there)!r} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"no permission to write to {str(there)!r}"
    else:
        return
    raise RunError(f"cannot write to {given[:_SHOWN]!r}: {reason}. Choose another {field}", field=field)


def forget_checkpoints(recipe: Recipe) -> None:
    """Delete the checkpoints and results of an earlier run, and mark its folders as new."""
    root = Path(recipe.output_dir)
    for folder in (root / Arm.TEACHER, *stage_folders(root), *arm_folders(root)):
        if folder.is_dir():
            begin(folder, is_main=True, overwrite=True)
            for name in (RESULT, PREDICTIONS, HISTORY, STAGE_RESULT):
                (folder / name).unlink(missing_ok=True)


def train_on_labels(
    model: nn.Module,
    adaptor: Callable[[Any, Any], Any],
    loader: DataLoader[Any],
    training: RecipeTraining,
    config: TrainingConfig,
    *,
    resume: Resume = None,
    resume_changed: bool = False,
    show_progress: bool = False,
    evaluation: Evaluation | None = None,
    observers: Iterable[RunObserver] = (),
    actor: Actor | None = None,
) -> RunResult:
    """Train ``model`` as ``BasicTrainer`` does, but call no plugin hooks except those of ``actor``.

    An exception in one of ``observers`` ends the run.

    Raises: ``OutputsError`` if the adaptor returns no ``losses``; ``RunError`` if the run cannot start or continue.
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
        evaluation=evaluation,
        **make_schedule(training, Budget.of(training, loader).total_steps),
    )
    return train(
        supervised(model, adaptor),
        None,
        config,
        request,
        observers=observers,
        actor=actor,
        strict=True,
        show_progress=show_progress,
        doing="training",
    )
