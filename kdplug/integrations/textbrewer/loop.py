"""TextBrewer's training loop: batches, optimizer steps and checkpoints, in the order that scripts rely on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from kdplug.engine.optimizer import add_groups, make_scheduler
from kdplug.errors import ConfigError, OutputsError, RunError
from kdplug.integrations.textbrewer.batch import core_of
from kdplug.integrations.textbrewer.configurations import TrainingConfig
from kdplug.integrations.textbrewer.log import logger


class Precision:
    """Autocast and loss scaling if the config enables half precision; otherwise no effect."""

    def __init__(self, config: TrainingConfig) -> None:
        self.enabled = bool(config.fp16) and config.fp16_opt_level != "O0"
        self._device = torch.device(config.device).type
        self._scaler = torch.amp.GradScaler(self._device, enabled=self.enabled)

    def forward(self) -> AbstractContextManager[Any]:
        """Return the autocast context for a forward pass and its losses."""
        return torch.autocast(self._device, dtype=torch.float16) if self.enabled else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass on the scaled loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Unscale the gradients before clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Step the optimizer; return false if the step was skipped because gradients overflowed."""
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= scale


def save(config: TrainingConfig, model: nn.Module, step: int) -> None:
    """Write the weights after ``step`` steps, in the first process; the others wait.

    The write is atomic. ``torch.load`` can read the file with ``weights_only=True``.
    """
    if config.rank == 0:
        path = Path(config.output_dir) / f"gs{step}.pkl"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(core_of(model).state_dict(), unfinished)
        unfinished.replace(path)
    if config.local_rank != -1:
        torch.distributed.barrier()


def steps_in_epoch(steps: int, frequency: int) -> frozenset[int]:
    """Return the steps of an epoch of ``steps`` after which a checkpoint is due; 0 means the epoch's end."""
    return frozenset(int(steps * place / frequency) for place in range(frequency))


Callback = Callable[..., Any] | None


class Owner(Protocol):
    """Interface between the loop and the distiller or trainer. Subclasses may override any of these methods."""

    t_config: TrainingConfig
    print_freq: int

    def trained_model(self) -> nn.Module:
        """Return the model whose gradients are clipped."""

    def train_on_batch(self, batch: Any, args: dict[str, Any]) -> Any:
        """Return the loss of a batch, or the loss and the terms to log."""

    def write_loss(self, total_loss: Any, writer_step: int, losses_dict: Any = None) -> None:
        """Log the loss of a batch."""

    def save_and_callback(self, global_step: int, step: int, epoch: int, callback: Callback) -> None:
        """Write a checkpoint and call the callback."""

    def step_done(self, steps: int, total: float) -> None:
        """Called after each optimizer step."""

    def batch_starts(self, epoch: int) -> None:
        """Called before each batch, with the number of completed passes over its data."""


class Loop:
    """The state of one ``train()`` call: counts batches and steps, and runs each step in TextBrewer's order.

    It divides the loss by ``gradient_accumulation_steps`` and runs backward; after that many batches, it clips the
    gradients of the trained model only, steps the optimizer and the learning-rate scheduler, and zeroes the gradients.
    """

    def __init__(
        self,
        owner: Owner,
        optimizer: Optimizer,
        scheduler: Any,
        max_grad_norm: float,
        callback: Callback,
        args: dict[str, Any],
    ) -> None:
        self.owner = owner
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.max_grad_norm = max_grad_norm
        self.callback = callback
        self.args = args
        self.precision = Precision(owner.t_config)
        self.accumulation = owner.t_config.gradient_accumulation_steps
        self.steps = self.batches = 0
        self.total: float = 0

    def bar(self, items: Iterable[Any]) -> Iterable[Any]:
        """Return the items, with a progress bar in the first process if it runs in a terminal."""
        shown: Iterable[Any] = tqdm(items, disable=True if self.owner.t_config.rank else None)
        return shown

    def start(self, total: float) -> None:
        """Start a run of ``total`` steps; clear gradients left from an earlier backward pass."""
        self.total = total
        self.optimizer.zero_grad()

    def backward(self, batch: Any, epoch: int) -> None:
        """Run one batch of a pass forward and backward. Raises: ``OutputsError`` if there is no loss."""
        self.owner.batch_starts(epoch)
        with self.precision.forward():
            result = self.owner.train_on_batch(batch, self.args)
        loss, terms = result if isinstance(result, tuple) else (result, None)
        if not isinstance(loss, Tensor):
            raise OutputsError(
                "the adaptors returned nothing to minimize: neither logits on both sides nor losses. Return logits from both "
                "adaptors, or losses from adaptor_S"
            )
        self.owner.write_loss(loss, self.batches, terms)
        self.batches += 1
        self.precision.backward(loss / self.accumulation)

    def step(self) -> None:
        """Make one optimizer step."""
        if self.max_grad_norm > 0:
            self.precision.unscale(self.optimizer)
            nn.utils.clip_grad_norm_(self.owner.trained_model().parameters(), self.max_grad_norm)
        if self.precision.step(self.optimizer) and self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.owner.step_done(self.steps, self.total)

    def save(self, place: int, epoch: int = 0) -> None:
        """Write a checkpoint and call the callback."""
        self.owner.save_and_callback(self.steps, place, epoch, self.callback)


def prepare(
    optimizer: Optimizer,
    groups: Iterable[Mapping[str, Any]],
    scheduler_class: Any,
    scheduler_args: Mapping[str, Any] | None,
    scheduler: Any,
) -> Any:
    """Add missing ``groups`` to the optimizer, then build the learning-rate scheduler or extend the given one.

    ``scheduler_class`` takes precedence over ``scheduler``, as in TextBrewer.

    Raises: ``ConfigError``, ``RunError`` for a scheduler that cannot be used.
    """
    added = add_groups(optimizer, groups)
    if scheduler_class is None:
        return make_scheduler(optimizer, new_groups=added, scheduler=scheduler)
    return make_scheduler(optimizer, new_groups=added, scheduler_class=scheduler_class, scheduler_args=scheduler_args)


def run_steps(loop: Loop, loader: Iterable[Any], num_steps: float, change: Callable[[Any], Any] | None) -> None:
    """Train for ``num_steps`` optimizer steps, and repeat the loader as needed.

    Raises: ``ConfigError`` if ``num_steps`` is below 1; ``RunError`` if a pass over the loader yields no batch.
    """
    last, every = step_plan(loop, num_steps)
    for place, (epoch, batch) in enumerate(loop.bar(endless(loader))):
        loop.backward(batch if change is None else change(batch), epoch)
        if (place + 1) % loop.accumulation == 0:
            loop.step()
            if loop.steps % _rarely(every, loop) == 0:
                logger.info("Global step: %s, epoch step:%s", loop.steps, place + 1)
            if loop.steps % every == 0 or loop.steps == last:
                loop.save(place)
        if loop.steps >= last:
            break
    logger.info("Training finished")


def step_plan(loop: Loop, num_steps: float) -> tuple[int, int]:
    """Return the last step, and the steps between checkpoints; ``None`` as ``ckpt_steps`` means only one at the end.

    Raises: ``ConfigError``.
    """
    last, ckpt_steps = math.ceil(num_steps), loop.owner.t_config.ckpt_steps
    if last < 1:
        raise ConfigError(f"must be at least 1, got {num_steps}", field="num_steps")
    every = last if ckpt_steps is None else int(ckpt_steps)
    if every < 1:
        raise ConfigError(f"must be at least 1, got {ckpt_steps}", field="ckpt_steps")
    logger.info("Total training steps: %s", num_steps)
    logger.info("Checkpoints(step): %s", sorted({*range(every, last + 1, every), last}))
    loop.start(num_steps)
    return last, every


def endless(loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the batches forever, each with its pass, from 0. Raises: ``RunError`` if a whole pass yields none."""
    for epoch in count():
        batch = _NONE
        for batch in loader:
            yield epoch, batch
        if batch is _NONE:
            raise RunError(
                "the dataloader yields no more batches: it is empty, or an iterator that can be read only once. Pass a "
                "DataLoader or a list with at least one batch"
            )


_NONE = object()


def run_epochs(
    loop: Loop,
    loader: Any,
    num_epochs: float,
    change: Callable[[Any], Any] | None,
    reshuffled: Callable[[], list[Any]] | None = None,
) -> None:
    """Train for ``int(num_epochs)`` passes over the loader, or over the batches that ``reshuffled`` returns each epoch.

    Batches at an epoch's end that do not fill a step are computed and logged, but dropped, as in TextBrewer.

    Raises: ``ConfigError`` for less than one epoch; ``RunError`` if the loader has too few batches for a single step.
    """
    config, epochs = loop.owner.t_config, int(num_epochs)
    if epochs < 1:
        raise ConfigError(f"must be at least 1, got {num_epochs}", field="num_epochs")
    steps = len(loader) // loop.accumulation
    if not steps:
        if not len(loader):
            raise RunError("the dataloader is empty, so no optimizer step would be taken")
        raise RunError(
            f"gradient_accumulation_steps is {loop.accumulation}, more than the number of batches in the dataloader, "
            f"{len(loader)}, so no optimizer step would be taken. Set gradient_accumulation_steps to at most {len(loader)}"
        )
    due = steps_in_epoch(steps, config.ckpt_frequency)
    logger.info("Training steps per epoch: %s", steps)
    logger.info("Checkpoints(step): %s", sorted(due))
    loop.start(steps * num_epochs)
    for epoch in loop.bar(range(epochs)):
        _set_epoch(loader, epoch)
        logger.info("Epoch %s", epoch + 1)
        loop.optimizer.zero_grad()
        batches = loader if reshuffled is None else reshuffled()
        logger.info("Length of current epoch in forward batch: %s", len(batches))
        saves = (epoch + 1) % config.ckpt_epoch_frequency == 0 or epoch + 1 == epochs
        for place, batch in enumerate(loop.bar(batches)):
            loop.backward(batch if change is None else change(batch), epoch)
            if (place + 1) % loop.accumulation == 0:
                loop.step()
                if loop.steps % _rarely(steps, loop) == 0:
                    logger.info("Global step: %s, epoch step:%s", loop.steps, place + 1)
                if saves and loop.steps % steps in due:
                    loop.save(place, epoch)
        logger.info("Epoch %s finished", epoch + 1)


def _rarely(steps: int, loop: Loop) -> int:
    """Return the steps between log lines: ``print_freq`` lines per ``steps`` steps, but at least one."""
    return steps // loop.owner.print_freq or steps


def _set_epoch(loader: Any, epoch: int) -> None:
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)
