"""Distillation of one teacher's logits, and the base classes of the other distillers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from kdplug.errors import ConfigError, KdplugError, RunError
from kdplug.host.textbrewer_maps import KD_LOSS_MAP
from kdplug.integrations.textbrewer.batch import (
    DistillationContext,
    adapted,
    auto_forward,
    get_outputs_from_batch,
    has_parameters,
    move_to_device,
    read_on_many,
    teacher_part,
    trained_on_many,
    without_ids,
)
from kdplug.integrations.textbrewer.configurations import DistillationConfig, TrainingConfig
from kdplug.integrations.textbrewer.log import logger, make_writer, warn_once, write_terms
from kdplug.integrations.textbrewer.loop import Callback, Loop, prepare, run_epochs, run_steps, save
from kdplug.integrations.textbrewer.term import (
    Progress,
    hard_label_loss,
    kd_loss,
    modules_of,
    requests_ids,
    weighted,
)
from kdplug.objective.batch import Draws
from kdplug.objective.example_ids import read_example_ids

__all__ = ["AbstractDistiller", "BasicDistiller"]


class AbstractDistiller(DistillationContext):
    """Holds models, adaptors and configs, under TextBrewer's names.

    ``projs`` are modules trained with the student (or ``None``), ``projs_group`` the options of their optimizer groups;
    a subclass may fill both.

    Raises: ``EntryError``, ``ConfigError`` for a kd loss that does not exist or lacks a setting.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
    ) -> None:
        super().__init__()
        self.t_config = train_config
        self.d_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        try:
            self.kd_loss = KD_LOSS_MAP[distill_config.kd_loss_type]
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__
        self.local_rank = train_config.local_rank
        self.rank = train_config.rank
        self.tb_writer = make_writer(train_config)
        self.print_freq = 20
        self.logits_cache: list[Any] = []
        self.projs: list[Any] = []
        self.projs_group: list[Any] = []
        self.progress = Progress(draws=Draws(0, self.rank))
        for module in modules_of([self.kd_loss, distill_config.temperature_scheduler]):
            module.to(train_config.device)


class BasicDistiller(AbstractDistiller):
    """One teacher, one task: the kd loss and the hard-label loss."""

    def trained_model(self) -> nn.Module:
        """Return the student."""
        student: nn.Module = self.model_S
        return student

    @property
    def is_caching(self) -> bool:
        """True if teacher logits are computed once and cached; always false in distillers with matches."""
        return self.d_config.is_caching_logits is True

    def trained_modules(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Yield each module trained with the student, and the options of its optimizer group."""
        yield from zip(self.projs, self.projs_group, strict=True)
        yield from ((module, {}) for module in modules_of([self.kd_loss, self.d_config.temperature_scheduler]))

    def save_and_callback(self, global_step: int, step: int, epoch: int, callback: Callback) -> None:
        """Write ``gs{global_step}.pkl``, call ``callback(model=…, step=…)``, and set the student to train mode
        again.
        """
        logger.info("Saving at global step %s, epoch step %s epoch %s", global_step, step + 1, epoch + 1)
        save(self.t_config, self.model_S, global_step)
        if callback is not None:
            logger.info("Running callback function...")
            callback(model=self.model_S, step=global_step)
            self.model_S.train()

    def write_loss(self, total_loss: torch.Tensor, writer_step: int, losses_dict: Any = None) -> None:
        """Log the loss of one batch and its terms."""
        write_terms(self.tb_writer, total_loss, losses_dict, writer_step)

    def step_done(self, steps: int, total: float) -> None:
        """Update the progress, and set the weights from the weight schedulers."""
        self.progress = Progress(steps / total, steps, total, self.progress.epoch, Draws(steps, self.rank))
        if self.d_config.kd_loss_weight_scheduler is not None:
            self.d_config.kd_loss_weight = self.d_config.kd_loss_weight_scheduler(steps / total)
        if self.d_config.hard_label_weight_scheduler is not None:
            self.d_config.hard_label_weight = self.d_config.hard_label_weight_scheduler(steps / total)

    def batch_starts(self, epoch: int) -> None:
        """Set the epoch that losses may read."""
        self.progress = replace(self.progress, epoch=epoch)

    def initialize_training(
        self, optimizer: Optimizer, scheduler_class: Any, scheduler_args: Any, scheduler: Any
    ) -> tuple[Optimizer, Any, bool | None]:
        """Add optimizer groups and wrap the models; return optimizer, scheduler, and tqdm's ``disable``.

        Raises: ``RunError`` if ``local_rank`` is set but a loss, temperature scheduler or custom match has parameters, which would not be
        synchronized.
        """
        trained = [(module, options) for module, options in self.trained_modules() if module is not None]
        if self.local_rank != -1 and any(has_parameters(module) for module, _ in trained if module not in self.projs):
            raise RunError(
                "local_rank cannot be set if a loss, a temperature scheduler or a custom match has parameters. Use kdplug.GeneralDistiller"
            )
        groups = [{"params": list(module.parameters()), **options} for module, options in trained]
        scheduler = prepare(optimizer, groups, scheduler_class, scheduler_args, scheduler)
        self.model_S = trained_on_many(self.t_config, self.model_S)
        self.model_T = read_on_many(self.t_config, self.model_T)
        if self.local_rank != -1:
            self.projs = [proj if proj is None else trained_on_many(self.t_config, proj) for proj in self.projs]
        return optimizer, scheduler, None if self.rank == 0 else True

    def train(
        self,
        optimizer: Optimizer,
        dataloader: Any,
        num_epochs: float | None = None,
        scheduler_class: Any = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        num_steps: float | None = None,
        callback: Callback = None,
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **args: Any,
    ) -> None:
        """Train the student for ``num_steps`` optimizer steps, or else for ``num_epochs`` passes over the loader.

        ``scheduler_class(optimizer=…, **scheduler_args)`` builds the learning-rate scheduler; ``callback(model=…,
        step=…)`` is called at each checkpoint; ``args`` are passed to both models' ``forward``.

        Raises: ``ConfigError`` for an invalid combination; ``RunError`` if no step can be made.
        """
        if num_epochs is None and num_steps is None:
            raise ConfigError("set num_epochs or num_steps")
        if self.is_caching and num_steps is not None:
            raise ConfigError(
                "is True, which requires num_epochs, but num_steps is set. Pass num_epochs instead of num_steps, or set "
                "is_caching_logits to False",
                field="is_caching_logits",
            )
        optimizer, scheduler, _ = self.initialize_training(optimizer, scheduler_class, scheduler_args, scheduler)
        loop = Loop(self, optimizer, scheduler, max_grad_norm, callback, args)
        with self.running():
            if num_steps is not None:
                run_steps(loop, dataloader, num_steps, batch_postprocessor)
            elif num_epochs is not None and not self.is_caching:
                run_epochs(loop, dataloader, num_epochs, batch_postprocessor)
            elif num_epochs is not None:
                self._fill_cache(loop.bar(dataloader), args, batch_postprocessor)
                run_epochs(loop, dataloader, num_epochs, None, self._reshuffled)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wrap a run; at its end, restore the config's weights, which the weight schedulers overwrite."""
        if self.d_config.is_caching_logits and not self.is_caching:
            warn_once(f"is_caching_logits has no effect: {type(self).__name__} does not cache teacher logits")
        weights = self.d_config.kd_loss_weight, self.d_config.hard_label_weight
        try:
            yield
        finally:
            self.d_config.kd_loss_weight, self.d_config.hard_label_weight = weights

    def train_on_batch(self, batch: Any, args: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss of a batch, and its terms by their names in the log."""
        if self.is_caching:
            batch, cached = batch
        batch = self.take_ids(batch)
        (batch_T, outputs_T), (batch_S, outputs_S) = get_outputs_from_batch(
            batch, self.t_config.device, self.model_T, self.model_S, args, no_teacher_forward=self.is_caching
        )
        results_T = (
            move_to_device(cached, self.t_config.device)
            if self.is_caching
            else self.teacher_results(batch_T, outputs_T)
        )
        return self.compute_loss(adapted(self.adaptor_S, batch_S, outputs_S, "adaptor_S"), results_T)

    def take_ids(self, batch: Any) -> Any:
        """Return the batch without the key ``example_ids``, which losses may read from now on; unchanged if none does."""
        if not any(map(requests_ids, self.losses())):
            return batch
        batch, ids = without_ids(batch)
        ids = None if ids is None else read_example_ids(ids).to(self.t_config.device)
        self.progress = replace(self.progress, example_ids=ids)
        return batch

    def losses(self) -> list[Any]:
        """Return the losses of the config."""
        return [self.kd_loss]

    def teacher_results(self, batch: Any, outputs: Any) -> Any:
        """Return the result of the teacher's adaptor."""
        return adapted(self.adaptor_T, batch, outputs, "adaptor_T")

    def compute_loss(self, results_S: Any, results_T: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss and its terms, from the adaptors' results. Raises: ``OutputsError`` if logits are missing."""
        term = kd_loss(self.d_config, self.kd_loss, results_S, [results_T], self.progress)
        total, terms = weighted(0, term, self.d_config.kd_loss_weight), {"unweighted_kd_loss": term}
        return self.add_hard_label_loss(total, terms, results_S)

    def add_hard_label_loss(self, total: Any, terms: dict[str, Any], results_S: Any) -> tuple[Any, dict[str, Any]]:
        """Add the student's own losses to the total, if it returned any."""
        if "losses" in results_S:
            term = terms["unweighted_hard_label_loss"] = hard_label_loss(results_S["losses"])
            total = weighted(total, term, self.d_config.hard_label_weight)
        elif self.d_config.hard_label_weight:
            warn_once("hard_label_weight has no effect: adaptor_S returned no losses")
        return total, terms

    def cache_logits(self, batch: Any, args: dict[str, Any], batch_postprocessor: Callable[[Any], Any] | None) -> None:
        """Cache a batch, on its current device, and its teacher logits and their mask, in CPU memory."""
        batch = batch if batch_postprocessor is None else batch_postprocessor(batch)
        part = move_to_device(teacher_part(self.take_ids(batch)), self.t_config.device)
        with torch.no_grad():
            results = self.teacher_results(part, auto_forward(self.model_T, part, args))
        self.logits_cache.append([batch, _on_cpu(results)])

    def _fill_cache(self, batches: Iterable[Any], args: dict[str, Any], change: Any) -> None:
        logger.info("Caching batches and teacher's logits...")
        self.logits_cache = []
        for batch in batches:
            self.cache_logits(batch, args, change)

    def _reshuffled(self) -> list[Any]:
        random.shuffle(self.logits_cache)
        return self.logits_cache


def _on_cpu(results: Any) -> Any:
    if isinstance(results, list):
        return [_on_cpu(one) for one in results]
    return {key: [one.to("cpu") for one in results[key]] for key in ("logits", "logits_mask") if key in results}
