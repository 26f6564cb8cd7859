"""Training without distillation, for example of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from kdplug.errors import OutputsError
from kdplug.integrations.textbrewer.batch import adapted, auto_forward, move_to_device, trained_on_many
from kdplug.integrations.textbrewer.configurations import TrainingConfig
from kdplug.integrations.textbrewer.log import logger, make_writer, write_terms
from kdplug.integrations.textbrewer.loop import Callback, Loop, prepare, run_epochs, run_steps, save
from kdplug.integrations.textbrewer.term import hard_label_loss

__all__ = ["BasicTrainer"]


class BasicTrainer:
    """Trains one model on the losses that its adaptor returns."""

    def __init__(self, train_config: TrainingConfig, model: nn.Module, adaptor: Callable[..., Any]) -> None:
        self.t_config = train_config
        self.model = model
        self.adaptor = adaptor
        self.local_rank = train_config.local_rank
        self.rank = train_config.rank
        self.tb_writer = make_writer(train_config)
        self.print_freq = 20

    def __enter__(self) -> Self:
        self._modes = [(module, module.training) for module in self.model.modules()]
        self.model.train()
        return self

    def __exit__(self, *error: object) -> None:
        for module, training in self._modes:
            module.training = training

    def train(
        self,
        optimizer: Optimizer,
        dataloader: Any,
        num_epochs: float,
        scheduler_class: Any = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        num_steps: float | None = None,
        callback: Callback = None,
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **args: Any,
    ) -> None:
        """Train the model, with the arguments of ``BasicDistiller.train``."""
        scheduler = prepare(optimizer, (), scheduler_class, scheduler_args, scheduler)
        self.model = trained_on_many(self.t_config, self.model)
        loop = Loop(self, optimizer, scheduler, max_grad_norm, callback, args)
        if num_steps is not None:
            run_steps(loop, dataloader, num_steps, batch_postprocessor)
        else:
            run_epochs(loop, dataloader, num_epochs, batch_postprocessor)

    def train_on_batch(self, batch: Any, args: dict[str, Any]) -> torch.Tensor:
        """Return the loss of a batch. Raises: ``OutputsError`` if the adaptor returns no losses."""
        batch = move_to_device(batch, self.t_config.device)
        results = adapted(self.adaptor, batch, auto_forward(self.model, batch, args), "the adaptor")
        if "losses" not in results:
            raise OutputsError(
                "missing from the adaptor's result, so there is no loss to minimize. Return losses from the adaptor",
                field="losses",
            )
        loss: torch.Tensor = hard_label_loss(results["losses"])
        return loss

    def trained_model(self) -> nn.Module:
        """Return the model."""
        return self.model

    def write_loss(self, total_loss: torch.Tensor, writer_step: int, losses_dict: Any = None) -> None:
        """Log the loss of one batch."""
        write_terms(self.tb_writer, total_loss, losses_dict, writer_step)

    def save_and_callback(self, global_step: int, step: int, epoch: int, callback: Callback) -> None:  # noqa: ARG002
        """Write ``gs{global_step}.pkl``, call ``callback(model=…, step=…)``, and set the model to train mode again."""
        logger.info("Saving at global step %s", global_step)
        save(self.t_config, self.model, global_step)
        if callback is not None:
            logger.info("Running callback function...")
            callback(model=self.model, step=global_step)
            self.model.train()

    def step_done(self, steps: int, total: float) -> None:
        """Do nothing: no weight or temperature changes during the run."""

    def batch_starts(self, epoch: int) -> None:
        """Do nothing: no loss reads the epoch."""
