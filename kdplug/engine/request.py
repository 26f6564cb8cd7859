"""What a call of ``train`` asks for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from kdplug.engine.evaluation import Evaluation
from kdplug.errors import ConfigError

Callback = Callable[..., Any]
"""``callback(model=student, step=step)``, called after each checkpoint, on every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of one training run, as the user wrote them.

    ``num_epochs`` may be a fraction; ``num_steps`` counts optimizer steps. ``max_grad_norm`` of ``None``, 0 or below is off.
    ``batch_postprocessor`` maps each batch before it is moved to the device; ``model_args`` go to teacher and student.
    ``evaluation`` is what the run looks at on the way. ``resume`` is ``"auto"`` or the folder of a checkpoint; ``identity`` is
    what has to be the same for that, as plain data, unless ``resume_changed``.

    Raises: ``ConfigError`` for what would otherwise fail in the middle of the run, or be taken for something else.
    """

    optimizer: Optimizer
    dataloader: Iterable[Any]
    num_epochs: float | None = None
    num_steps: int | None = None
    scheduler_class: Callable[..., Any] | None = None
    scheduler_args: Mapping[str, Any] | None = None
    scheduler: Any = None
    max_grad_norm: float | None = None
    callback: Callback | None = None
    batch_postprocessor: Callable[[Any], Any] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    resume: str | os.PathLike[str] | None = None
    resume_changed: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("optimizer", self.optimizer, isinstance(self.optimizer, Optimizer), "a torch optimizer")
        for name in ("callback", "batch_postprocessor", "scheduler_class"):
            value = getattr(self, name)
            _check(name, value, value is None or callable(value), "a callable")
        _check("scheduler_args", self.scheduler_args, _is(Mapping, self.scheduler_args), "a mapping")
        _check("evaluation", self.evaluation, _is(Evaluation, self.evaluation), "a kdplug.Evaluation")
        steps = self.scheduler is None or callable(getattr(self.scheduler, "step", None))
        _check("scheduler", self.scheduler, steps, "a learning-rate scheduler, which has a step()")
        _check("max_grad_norm", self.max_grad_norm, _is_limit(self.max_grad_norm), "a number, or None")
        named = _is((str, os.PathLike), self.resume)
        _check("resume", self.resume, named, "'auto', the folder of a checkpoint, or None")
        _check("resume_changed", self.resume_changed, isinstance(self.resume_changed, bool), "true or false")


def _check(field: str, value: object, is_fit: bool, wanted: str) -> None:
    if not is_fit:
        raise ConfigError(f"must be {wanted}, got {value!r}", field=field)


def _is(kinds: type | tuple[type, ...], value: object) -> bool:
    return value is None or isinstance(value, kinds)


def _is_limit(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value))
