"""The methods that distillers have in common: each is one function, which several classes have as an attribute."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any, Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer

from kdplug.config.training import TrainingConfig
from kdplug.distillers.session import Session, Sides
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.request import Callback, Request
from kdplug.engine.resume import Resume
from kdplug.engine.run import RunResult


class Distiller(Protocol):
    """What has something to train, and a session to do it in."""

    train_config: TrainingConfig
    _session: Session

    def _sides(self) -> Sides: ...

    def train(self, optimizer: Optimizer, dataloader: Iterable[Any], *options: Any, **model_args: Any) -> RunResult: ...


D = TypeVar("D", bound=Distiller)


def enter(self: D) -> D:
    """Teachers in eval mode, student in train mode, until the block ends. ``train`` does the same by itself."""
    self._session.enter(self._sides())
    return self


def leave(self: Distiller, *_error: object) -> None:
    """Put every model back into the mode of before the block."""
    self._session.leave()


def train(  # noqa: PLR0917  TextBrewer's signature
    self: Distiller,
    optimizer: Optimizer,
    dataloader: Iterable[Any],
    num_epochs: float | None = None,
    scheduler_class: Callable[..., Any] | None = None,
    scheduler_args: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    max_grad_norm: float | None = None,
    num_steps: int | None = None,
    callback: Callback | None = None,
    batch_postprocessor: Callable[[Any], Any] | None = None,
    *,
    evaluation: Evaluation | None = None,
    resume: Resume = None,
    resume_changed: bool = False,
    **model_args: Any,
) -> RunResult:
    """Train the student for ``num_epochs`` passes over the loader (fractions count) or ``num_steps`` optimizer steps.

    A batch that is a mapping is passed to the models by keyword, a list or tuple by position, anything else as one
    argument; a batch ``{"teacher": …, "student": …}`` gives each side its own, and ``teacher_cache`` beside them stands for
    what the teacher would return. ``model_args`` go to every model.

    * ``optimizer`` holds the student's parameters; the objective's own (projections) join it as further groups.
    * ``dataloader`` is any iterable of batches; under ``accelerate launch`` a ``DataLoader``, which is divided.
    * ``scheduler_class`` is called as ``scheduler_class(optimizer=optimizer, **scheduler_args)`` and stepped once per
      optimizer step. ``scheduler`` is an object built before, which ``scheduler_class`` makes unnecessary.
    * ``max_grad_norm`` clips the norm over student and projections together; ``None`` or -1 is off.
    * ``callback`` is called as ``callback(model=student, step=step)`` after each checkpoint, on every process. What it raises
      ends the run.
    * ``batch_postprocessor`` maps each batch before it moves to the device.
    * ``evaluation`` says what the run looks at on the way, which checkpoint is the best and when to stop early.
    * ``resume="auto"`` goes on from the last checkpoint in ``output_dir``, to the same bits as a run that was not
      interrupted, and starts where there is none; the folder of a checkpoint goes on from that one. Another config, plugin
      version, teacher, dataset, adaptor or optimizer is an error that lists what differs, unless ``resume_changed``. A damaged
      checkpoint is passed over with a warning.
      Between checkpoints, SIGTERM and SIGINT save and end the run.

    Raises: ``ConfigError`` for arguments that cannot be meant together; ``RunError`` where the run cannot start (an optimizer
    without the student's parameters, an empty loader, …) or go on (a loss that is not finite); ``OutputsError`` where a model
    does not return what a term needs.
    """
    sides = self._sides()
    tell_misspelt(self.train, model_args, sides.pair.student)
    request = Request(
        optimizer=optimizer,
        dataloader=dataloader,
        num_epochs=num_epochs,
        num_steps=num_steps,
        scheduler_class=scheduler_class,
        scheduler_args=scheduler_args,
        scheduler=scheduler,
        max_grad_norm=max_grad_norm,
        callback=callback,
        batch_postprocessor=batch_postprocessor,
        model_args=model_args,
        evaluation=evaluation,
        resume=resume,
        resume_changed=resume_changed,
    )
    return self._session.run(self.train_config, sides, request)


def tell_misspelt(train: Callable[..., Any], model_args: Iterable[str], model: nn.Module) -> None:
    """Warn of an argument that goes to the models, none of which names it, and is nearly one of ``train``."""
    own = [name for name in signature(train).parameters if name != "model_args"]
    named = signature(model.forward).parameters
    for name in model_args:
        if name not in named and (like := get_close_matches(name, own, n=1, cutoff=0.75)):
            warnings.warn(
                f"{name!r} is no argument of train() and goes to the models, whose forward does not name it. "
                f"Did you mean {like[0]!r}?",
                stacklevel=3,
            )
