"""Check and extend the user's optimizer and learning-rate scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from kdplug.errors import ConfigError, RunError


def unwrap(optimizer: Optimizer) -> Optimizer:
    """Return the torch optimizer inside one prepared by accelerate."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return every parameter that the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def add_groups(optimizer: Optimizer, groups: Iterable[Mapping[str, Any]]) -> int:
    """Add the groups whose parameters are not in the optimizer yet, and return how many were added.

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
    """Check that the optimizer trains the student.

    Raises: ``RunError`` if it holds none of the student's trainable parameters. Warns if it lacks some.
    """
    held = {id(parameter) for parameter in parameters(optimizer)}
    trainable = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if not trainable:
        if next(student.parameters(), None) is None:
            raise RunError("the student has no parameters, so there is nothing to train")
        raise RunError(
            "the student has no trainable parameter: all have requires_grad=False. Set requires_grad=True on those to train"
        )
    if len(missing) == len(trainable):
        raise RunError(
            "the optimizer holds none of the student's trainable parameters, so training would change nothing. Create the "
            f"optimizer from the student passed to the distiller: {type(optimizer).__name__}(student.parameters(), …)"
        )
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        warnings.warn(
            f"the optimizer lacks {len(missing)} of the student's {len(trainable)} trainable parameters, which the run "
            f"does not train: {names}. Build the optimizer from student.parameters(), or set requires_grad=False on "
            "parameters that should stay frozen",
            stacklevel=2,
        )


def check_constant_rate(optimizer: Optimizer) -> None:
    """Warn if the learning rate is 0. Call it for a run without a learning-rate scheduler."""
    groups = optimizer.param_groups
    if groups and not any(group.get("lr", 1) for group in groups):
        warnings.warn(
            f"the learning rate of the {type(optimizer).__name__} is 0 and there is no scheduler, so the run trains nothing. "
            "Set lr to a positive number",
            stacklevel=2,
        )


class RateWatch:
    """Warns once about optimizer steps in a row at a learning rate of 0, which a scheduler set."""

    def __init__(self) -> None:
        self._idle = 0

    def see(self, optimizer: Optimizer, scheduler: Any, step: int, total: int) -> None:
        """Check the learning rate of optimizer step ``step``, counted from 1. A tensor is not read from its device."""
        if step > total:
            return
        rates = [group.get("lr", 1) for group in optimizer.param_groups]
        if any(isinstance(rate, Tensor) or rate for rate in rates):
            self._idle = 0
            return
        self._idle += 1
        if self._idle == _IDLE:
            warnings.warn(
                f"the learning rate has been 0 since step {step + 1 - _IDLE} of {total}, so these steps train nothing. Is lr 0, or "
                f"was the {type(scheduler).__name__} built for fewer than {total} optimizer steps?",
                stacklevel=2,
            )


_IDLE = 2
"""Number of steps in a row at a learning rate of 0 that cause a warning; a warm-up or a cosine may have a single one."""


class GradientWatch:
    """Warns once about trained parameters of the student that get no gradient in the first steps.

    The check reads no tensor values, so it needs no device synchronization.
    """

    def __init__(self, optimizer: Optimizer, student: Iterable[tuple[str, nn.Parameter]]) -> None:
        held = {id(parameter) for parameter in parameters(optimizer)}
        trained = {name: one for name, one in student if one.requires_grad and id(one) in held}
        self._total = len(trained)
        self._without = trained
        self._steps = 0

    def see(self, *, ends: bool) -> None:
        """Check the gradients of an optimizer step; ``ends`` is true for the last step."""
        if not self._without:
            return
        self._steps += 1
        self._without = {name: one for name, one in self._without.items() if one.grad is None}
        if not self._without or (self._steps < _FIRST_STEPS and not ends):
            return
        without, self._without = self._without, {}
        names = ", ".join(list(without)[:3]) + (", …" if len(without) > 3 else "")
        warnings.warn(
            f"{len(without)} of the student's {self._total} trained parameters got no gradient in the first "
            f"{self._steps} step(s), so they do not train: {names}. Does forward() or an adaptor use "
            "torch.no_grad() or detach()? A loss on features trains only the layers that compute these features: later layers "
            "need a loss on logits, or a match of a later layer. Ignore this warning if no loss is meant to use these parameters, as with a "
            "pooler, or if only later batches use them",
            stacklevel=2,
        )


_FIRST_STEPS = 10
"""Number of steps in which a parameter must get a gradient; the batches of several tasks come in any order."""


def make_scheduler(
    optimizer: Optimizer,
    *,
    new_groups: int,
    scheduler_class: Callable[..., Any] | None = None,
    scheduler_args: Mapping[str, Any] | None = None,
    scheduler: Any = None,
) -> Any:
    """Return the scheduler to step once per optimizer step, or ``None``.

    ``scheduler_class`` is any callable that takes ``optimizer=`` and ``scheduler_args``. A ``scheduler`` built before
    the last ``new_groups`` groups were added to the optimizer is extended by them.

    Raises: ``ConfigError`` for conflicting arguments; ``RunError`` for an incompatible scheduler.
    """
    if scheduler_class is None:
        if scheduler_args is not None:
            raise ConfigError("has no effect without scheduler_class", field="scheduler_args")
        return None if scheduler is None else _adopt(scheduler, optimizer, new_groups)
    if scheduler is not None:
        raise ConfigError("pass either scheduler_class (with scheduler_args) or scheduler, not both", field="scheduler")
    name = getattr(scheduler_class, "__name__", repr(scheduler_class))
    if scheduler_args is None:
        raise ConfigError(
            f"missing: {name} is called as {name}(optimizer=optimizer, **scheduler_args). Write {{}} for no arguments.",
            field="scheduler_args",
        )
    if "optimizer" in scheduler_args:
        raise ConfigError("must not contain 'optimizer', which is passed by the run", field="scheduler_args")
    return _without_metric(scheduler_class(optimizer=optimizer, **scheduler_args))


def _without_metric(scheduler: Any) -> Any:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise RunError(
            "ReduceLROnPlateau needs a metric at each step, which a run does not provide; choose another scheduler"
        )
    return scheduler


def _adopt(scheduler: Any, optimizer: Optimizer, new_groups: int) -> Any:
    """Extend the scheduler's per-group lists by the groups that were added after it was built."""
    _without_metric(scheduler)
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise RunError(
            "the scheduler was built for a different optimizer from the one passed to train(). Build the scheduler for the "
            "optimizer passed to train(), or pass scheduler_class instead"
        )
    if not new_groups:
        return scheduler
    groups = optimizer.param_groups
    old, new = groups[:-new_groups], groups[-new_groups:]
    if isinstance(scheduler, LambdaLR) and len({id(rule) for rule in scheduler.lr_lambdas}) == 1:
        rule = scheduler.lr_lambdas[0]
        scheduler.lr_lambdas += [rule] * new_groups
        _extend(scheduler, new, rule(scheduler.last_epoch))
    elif type(scheduler).__name__ in _UNIFORM and [group["lr"] for group in old] == scheduler.base_lrs:
        _extend(scheduler, new, 1.0)
    else:
        raise RunError(
            f"the {type(scheduler).__name__} was built before the projections were added to the optimizer (number of added "
            f"parameter groups: {new_groups}) and cannot be extended. Pass scheduler_class and scheduler_args, so that the "
            "run builds the scheduler afterwards"
        )
    return scheduler


_UNIFORM = frozenset(
    ("StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts")
)
"""Schedulers whose only per-group state is the base rate, which is also their first rate."""


def _extend(scheduler: LRScheduler, groups: list[dict[str, Any]], factor: float) -> None:
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
        scheduler.base_lrs.append(group["initial_lr"])
        group["lr"] = group["initial_lr"] * factor
