"""The user's optimizer: what it must hold before a run, and what is added to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from kdplug.errors import RunError


def unwrap(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside one that accelerate prepared."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Every parameter that the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def add_groups(optimizer: Optimizer, groups: Iterable[Mapping[str, Any]]) -> int:
    """Add the groups whose parameters the optimizer does not hold yet, and say how many were added.

    A second run with the same optimizer therefore adds nothing.
    """
    held = {id(parameter) for parameter in parameters(optimizer)}
    added = 0
    for group in groups:
        new = [parameter for parameter in group["params"] if id(parameter) not in held]
        if new:
            optimizer.add_param_group({**group, "params": new})
            added += 1
    return added


def check_student(optimizer: Optimizer, student: nn.Module) -> None:
    """Make sure that a step of the optimizer trains the student.

    Raises: ``RunError`` where it holds none of the student's trainable parameters. Warns where it lacks some.
    """
    held = {id(parameter) for parameter in parameters(optimizer)}
    trainable = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if not trainable:
        raise RunError("the student has no trainable parameter: each one has requires_grad=False, or there is none")
    if len(missing) == len(trainable):
        raise RunError(
            f"the optimizer holds none of the student's {len(trainable)} trainable parameters, so training would change "
            f"nothing. Build it from the student that the distiller got: {type(optimizer).__name__}(student.parameters(), …)"
        )
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        warnings.warn(
            f"{len(missing)} of the student's {len(trainable)} trainable parameters are not in the optimizer "
            f"and stay as they are: {names}",
            stacklevel=2,
        )
