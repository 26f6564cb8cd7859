"""Losses that are not finite: found, named, and stopped before they reach the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdplug.engine.parallel.fsdp import own_part, whole
from kdplug.errors import RunError
from kdplug.objective.report import LossReport

_LATEST = 100
"""Steps after which a device is asked at the latest."""


class FiniteWatch:
    """Looks at each total loss without making a device wait for it.

    On the CPU a look costs nothing, so each loss is checked before its backward pass. Elsewhere losses are kept and checked
    together in ``settle``, which a run calls before it logs and before it saves: what was saved is always good. One that
    ``stops`` nothing looks at nothing: then the gradient is looked at.
    """

    def __init__(self, *, stops: bool = True) -> None:
        self._stops = stops
        self._kept: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def see(self, step: int, report: LossReport) -> None:
        """Note the loss of optimizer step ``step`` (from 1).

        Raises: ``RunError`` that names the step and the terms that are not finite.
        """
        if not self._stops:
            return
        if report.total.is_cpu:
            if not math.isfinite(report.total.item()):
                _stop(step, report.total, {name: term.value for name, term in report.terms.items()})
            return
        terms = {name: term.total.detach() for name, term in report.terms.items()}
        self._kept.append((step, report.total.detach(), terms))
        if len(self._kept) >= _LATEST:
            self.settle()

    def settle(self) -> None:
        """Check what was kept, with one synchronisation.

        Raises: ``RunError`` that names the first bad step.
        """
        if not self._kept:
            return
        totals = torch.stack([total for _, total, _ in self._kept]).tolist()
        for value, (step, total, terms) in zip(totals, self._kept, strict=True):
            if not math.isfinite(value):
                _stop(step, total, terms)
        self._kept.clear()


class NonFiniteError(RunError):
    """A loss or a gradient is infinite or not a number."""


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, as a scalar tensor."""
    return _norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def check_weights(step: int, parameters: Iterable[nn.Parameter]) -> None:
    """Look at what is about to be saved, where nobody looked at the gradient.

    Raises: ``NonFiniteError`` where a weight is not finite.
    """
    norm = _norm([parameter.detach() for parameter in parameters]).item()
    if not math.isfinite(norm):
        raise NonFiniteError(f"step {step}: the norm of the weights is {norm}, although the loss was finite")


def spoiled(parameters: Iterable[nn.Parameter]) -> str:
    """What an error about a loss has to add where the weights are not finite any more; otherwise nothing.

    Of sharded weights this process looks at its own: it may be the only one with an error, and must not wait for the others.
    """
    if all(torch.isfinite(own_part(parameter.detach())).all() for parameter in parameters):
        return ""
    return "; the weights are not finite any more: the gradient of a step before was not"


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = whole(torch.nn.utils.get_total_norm(tensors))
    return norm


def check_norm(step: int, norm: Tensor, accelerator: Accelerator) -> None:
    """Look at the norm of the gradient, except where a loss scaler is meant to overflow now and then.

    Raises: ``NonFiniteError`` where it is not finite.
    """
    if accelerator.scaler is None and not math.isfinite(norm.item()):
        raise NonFiniteError(
            f"step {step}: the norm of the gradient is {norm.item()}, although the loss is finite; "
            "the weights are those of the step before"
        )


def _stop(step: int, total: Tensor, terms: Mapping[str, Tensor]) -> NoReturn:
    values = {name: value.item() for name, value in terms.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    where = ", ".join(bad) if bad else "each term is finite, their weighted sum is not"
    raise NonFiniteError(f"step {step}: the total loss is {total.item()} ({where})")
