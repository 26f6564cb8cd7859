"""Methods that the distillers share. Each is a function that several classes assign as an attribute."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any, Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.teacher import ExternalTeacher
from kdplug.distillers.session import Session, Sides
from kdplug.engine.checkpoint.resume import Resume
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.run import Callback, Request, RunResult
from kdplug.engine.self_teacher import SELF
from kdplug.engine.teacher import Teacher
from kdplug.engine.training_module import Adaptor
from kdplug.errors import ConfigError

Models = Sequence[nn.Module] | Mapping[str, nn.Module] | nn.ModuleList | nn.ModuleDict
Adaptors = Adaptor | Sequence[Adaptor | None] | Mapping[str, Adaptor | None] | None


def read_teachers(models: Any, adaptors: Any) -> dict[str, Teacher]:
    """Return the teachers by key, each with its adaptor; those of a list have the keys ``"0"``, ``"1"``…

    Raises: ``ConfigError`` for anything but a list or mapping of models, and for adaptors that do not match them.
    """
    by_key = _models(models)
    names = {key: f"teacher {key!r}" if len(by_key) > 1 else "teacher" for key in by_key}
    if adaptors is None or (callable(adaptors) and not isinstance(adaptors, (Mapping, Sequence))):
        return {key: Teacher(model, adaptors, names[key]) for key, model in by_key.items()}
    if isinstance(adaptors, Mapping):
        if missing := by_key.keys() ^ adaptors.keys():
            raise ConfigError(
                f"must have the keys of the teachers ({', '.join(by_key)}), got {', '.join(map(str, adaptors)) or 'none'}. "
                f"Only one of the two mappings has {', '.join(map(repr, sorted(map(str, missing))))}",
                field="adaptor_T",
            )
        return {key: Teacher(model, adaptors[key], names[key]) for key, model in by_key.items()}
    if not isinstance(adaptors, Sequence) or len(adaptors) != len(by_key):
        count = len(adaptors) if isinstance(adaptors, Sequence) else type(adaptors).__name__
        raise ConfigError(
            f"must be a single adaptor, or a list with one per teacher (number of teachers: {len(by_key)}), got {count}",
            field="adaptor_T",
        )
    return {key: Teacher(model, one, names[key]) for (key, model), one in zip(by_key.items(), adaptors, strict=True)}


def _models(models: Any) -> dict[str, nn.Module]:
    if isinstance(models, (Mapping, nn.ModuleDict)):
        found = dict(models.items())
    elif isinstance(models, (list, tuple, nn.ModuleList)):
        found = {str(place): model for place, model in enumerate(models)}
    else:
        one = ". For one teacher use GeneralDistiller, or a list of one" if isinstance(models, nn.Module) else ""
        raise ConfigError(
            f"must be a list of models, or a mapping of them by key, got {type(models).__name__}{one}", field="model_T"
        )
    if not found:
        raise ConfigError("must contain at least one teacher", field="model_T")
    for key, model in found.items():
        if not isinstance(key, str):
            raise ConfigError(f"must have strings as keys, got {key!r}", field="model_T")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"must be a model, got {type(model).__name__}", field=f"model_T.{key}")
    return found


def check_training(config: object) -> None:
    """Raise ``ConfigError`` for anything but a ``TrainingConfig``."""
    _check_config("train_config", config, TrainingConfig)


def check_distillation(config: object) -> None:
    """Raise ``ConfigError`` for anything but a ``DistillationConfig``."""
    _check_config("distill_config", config, DistillationConfig)


def check_side(field: str, model: object, adaptor_field: str, adaptor: object) -> None:
    """Raise ``ConfigError`` if the model is not a module, or the adaptor is not callable."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"must be a model, got {type(model).__name__}", field=field)
    if adaptor is not None and not callable(adaptor):
        raise ConfigError(f"must be a callable, got {type(adaptor).__name__}", field=adaptor_field)


def check_teacher(model: object, adaptor: object) -> None:
    """Raise ``ConfigError`` for anything but a model, an external teacher, ``"self"`` or ``None``."""
    if model is None:
        return
    if not isinstance(model, (nn.Module, ExternalTeacher)) and not (isinstance(model, str) and model == SELF):
        shown = repr(model) if isinstance(model, str) else type(model).__name__
        raise ConfigError(
            f"must be a model, an external teacher (with fingerprint(), called with a batch), or 'self', got {shown}",
            field="model_T",
        )
    if adaptor is not None and not callable(adaptor):
        raise ConfigError(f"must be a callable, got {type(adaptor).__name__}", field="adaptor_T")


def _check_config(field: str, config: object, kind: type) -> None:
    if not isinstance(config, kind):
        raise ConfigError(
            f"must be a {kind.__name__}, got {type(config).__name__}: use {kind.__name__}.from_dict for a mapping",
            field=field,
        )


class Distiller(Protocol):
    """An object with sides to train, and a session to train them in."""

    train_config: TrainingConfig
    _session: Session

    def _sides(self) -> Sides: ...

    def train(self, optimizer: Optimizer, dataloader: Iterable[Any], *options: Any, **model_args: Any) -> RunResult: ...


D = TypeVar("D", bound=Distiller)


def enter(self: D) -> D:
    """Put teachers in eval mode and the student in train mode until the block ends. ``train`` does this by itself."""
    self._session.enter(self._sides())
    return self


def leave(self: Distiller, *_error: object) -> None:
    """Restore the mode that every model had before the block."""
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
    overwrite: bool = False,
    **model_args: Any,
) -> RunResult:
    """Train the student for ``num_epochs`` passes over the loader (may be fractional) or ``num_steps`` optimizer steps.

    A batch that is a mapping is passed to the models by keyword, a list or tuple by position, anything else as one
    argument. Items that a model's ``forward`` does not take are not passed: labels (``labels``, ``label``, ``targets``,
    ``target`` or ``y``, or the last item of a list or tuple), and others, which are logged once. Adaptors get the whole
    batch. A student without an adaptor that returns ``[batch, classes]`` logits gets these labels, one class index per
    example, and their cross-entropy as its own loss if the config has a ``hard_label_weight``. Each side gets its own
    part of a batch ``{"teacher": …, "student": …}``; a third key ``teacher_cache`` replaces the teacher's outputs.
    ``model_args`` are passed to every model.

    * ``optimizer`` holds the student's parameters; those of the objective (projections) are added as further groups.
    * ``dataloader`` is any iterable of batches; under ``accelerate launch`` a ``DataLoader``, whose batches are divided
      among the processes.
    * ``scheduler_class`` is called as ``scheduler_class(optimizer=optimizer, **scheduler_args)`` and stepped once per
      optimizer step. ``scheduler`` is an existing scheduler, as an alternative.
    * ``max_grad_norm`` clips the norm over student and projections together; ``None`` or -1 disables clipping.
    * ``callback`` is called as ``callback(model=student, step=step)`` after each checkpoint, on every process. An
      exception in it ends the run.
    * ``batch_postprocessor`` maps each batch before it moves to the device.
    * ``evaluation`` sets what is evaluated during the run, which checkpoint is the best and when to stop early.
    * ``resume="auto"`` resumes from the last checkpoint in ``output_dir``, or starts a new run if there is none; a
      checkpoint folder resumes from that one. On a CPU the results are bit-identical to those of an uninterrupted run.
      A different config, plugin version, teacher, dataset, adaptor or optimizer raises an error that lists the
      differences, unless ``resume_changed``. A damaged checkpoint is skipped with a warning. SIGTERM and SIGINT end the
      run after the current step, with a checkpoint.
    * ``overwrite`` deletes the checkpoints of an earlier run in ``output_dir``. Without it or ``resume`` they raise an
      error before the teacher runs. Files and folders that were not written by a run are kept.

    Raises: ``ConfigError`` for conflicting arguments; ``RunError`` if the run cannot start (an optimizer without the
    student's parameters, an empty loader, a batch that does not match the signature of ``forward``, …) or continue (a
    loss that is not finite); ``OutputsError`` if a model does not return what a term needs.
    """
    sides = self._sides()
    warn_misspelt(self.train, model_args, sides.pair.student)
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
        overwrite=overwrite,
    )
    return self._session.run(self.train_config, sides, request)


def warn_misspelt(train: Callable[..., Any], model_args: Iterable[str], model: nn.Module) -> None:
    """Warn about a model argument that no ``forward`` names and that resembles an argument of ``train``."""
    own = [name for name in signature(train).parameters if name != "model_args"]
    named = signature(model.forward).parameters
    for name in model_args:
        if name not in named and (like := get_close_matches(name, own, n=1, cutoff=0.75)):
            warnings.warn(
                f"{name!r} is not an argument of train() and is passed to the models, whose forward has no such parameter. "
                f"Did you mean {like[0]!r}?",
                stacklevel=3,
            )
