"""Distillation of several teachers, one per task, into one student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from kdplug.errors import ConfigError
from kdplug.integrations.textbrewer.batch import adapted, get_outputs_from_batch
from kdplug.integrations.textbrewer.configurations import DistillationConfig, TrainingConfig
from kdplug.integrations.textbrewer.distiller_general import GeneralDistiller
from kdplug.integrations.textbrewer.log import logger
from kdplug.integrations.textbrewer.loop import Callback, Loop, endless, step_plan

__all__ = ["MultiTaskDistiller"]


class MultiTaskDistiller(GeneralDistiller):
    """Several tasks: teachers and adaptors are dicts by task. All tasks share one config and its projections.

    Raises: ``ConfigError`` if the tasks of the dicts differ.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Mapping[str, nn.Module],
        model_S: nn.Module,
        adaptor_T: Mapping[str, Any],
        adaptor_S: Mapping[str, Any],
    ) -> None:
        for field, given in (("adaptor_T", adaptor_T), ("adaptor_S", adaptor_S)):
            if set(given) != set(model_T.keys()):
                raise ConfigError(
                    f"has tasks {sorted(given)}, but model_T has {sorted(model_T.keys())}. Use the same tasks in both",
                    field=field,
                )
        super().__init__(train_config, distill_config, dict(model_T.items()), model_S, adaptor_T, adaptor_S)

    def train(  # type: ignore[override]  # TextBrewer's signature
        self,
        optimizer: Optimizer,
        dataloaders: Mapping[str, Any],
        num_steps: float,
        scheduler_class: Any = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        tau: float = 1,
        callback: Callback = None,
        batch_postprocessors: Mapping[str, Any] | None = None,
        **args: Any,
    ) -> None:
        """Train the student for ``num_steps`` optimizer steps; a task is drawn for each batch.

        A task's probability is proportional to its number of batches to the power of ``tau``, or uniform if a loader
        has no length. Draws use NumPy's global generator.

        Raises: ``ConfigError`` for a loader without a teacher; ``RunError`` if a pass over a loader yields no
        batch.
        """
        if missing := sorted(set(dataloaders) - set(self.model_T)):
            raise ConfigError(
                f"has tasks {missing}, for which model_T has no teacher. Add them to model_T, or remove these loaders",
                field="dataloaders",
            )
        optimizer, scheduler, _ = self.initialize_training(optimizer, scheduler_class, scheduler_args, scheduler)
        loop = Loop(self, optimizer, scheduler, max_grad_norm, callback, args)
        tasks, chances = list(dataloaders), _chances(dataloaders, tau)
        batches = {task: endless(loader) for task, loader in dataloaders.items()}
        with self.running():
            last, every = step_plan(loop, num_steps)
            while loop.steps < last:
                for _ in range(loop.accumulation):
                    task = tasks[int(np.random.choice(len(tasks), p=chances))]  # same draws as existing scripts
                    epoch, batch = next(batches[task])
                    if batch_postprocessors is not None:
                        batch = batch_postprocessors[task](batch)
                    loop.backward((batch, task), epoch)
                loop.step()
                if loop.steps % (every // self.print_freq or every) == 0:
                    logger.info("Global step: %s/%s", loop.steps, last)
                if loop.steps % every == 0 or loop.steps == last:
                    loop.save(loop.steps - 1)
        logger.info("Training finished")

    def train_on_batch(self, batch: Any, args: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss of a batch and its terms. ``batch`` is ``(the batch, its task)``."""
        batch, task = batch
        batch = self.take_ids(batch)
        (batch_T, outputs_T), (batch_S, outputs_S) = get_outputs_from_batch(
            batch, self.t_config.device, self.model_T[task], self.model_S, args
        )
        results_T = adapted(self.adaptor_T[task], batch_T, outputs_T, f"adaptor_T[{task!r}]")
        results_S = adapted(self.adaptor_S[task], batch_S, outputs_S, f"adaptor_S[{task!r}]")
        return self.compute_loss(results_S=results_S, results_T=results_T)


def _chances(dataloaders: Mapping[str, Any], tau: float) -> list[float] | None:
    """Return the probability of each task; ``None`` if a loader has no length."""
    try:
        sizes = [pow(len(loader), tau) for loader in dataloaders.values()]
    except TypeError:
        logger.info("The sizes of some datasets are unknown, so tau=1")
        return None
    logger.info("Total size of all datasets (in batches): %s", sum(map(len, dataloaders.values())))
    return [size / sum(sizes) for size in sizes]
