"""What a call of ``train`` asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from kdplug.engine.evaluation import Evaluation

Callback = Callable[..., Any]
"""``callback(model=student, step=step)``, called after each checkpoint, on every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of one training run, as the user wrote them.

    ``num_epochs`` may be a fraction; ``num_steps`` counts optimizer steps. ``max_grad_norm`` of ``None``, 0 or below is off.
    ``batch_postprocessor`` maps each batch before it is moved to the device; ``model_args`` go to teacher and student.
    ``evaluation`` is what the run looks at on the way. ``resume`` is ``"auto"`` or the folder of a checkpoint; ``identity`` is what has to be the same for that, as plain data,
    unless ``resume_changed``.
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
