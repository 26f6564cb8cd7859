"""Detect non-finite losses before they reach a checkpoint."""

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
"""Maximum number of steps between two checks on an accelerator."""


class FiniteWatch:
    """Checks each total loss without a device synchronization per step.

    On the CPU each loss is checked before its backward pass. On other devices losses are buffered and checked together
    in ``settle``, which a run calls before it logs and before it saves, so that a checkpoint never holds non-finite
    weights. With ``stops=False`` nothing is checked here; the gradient is checked instead.
    """

    def __init__(self, *, stops: bool = True) -> None:
        self._stops = stops
        self._kept: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def see(self, step: int, report: LossReport) -> None:
        """Record the loss of optimizer step ``step`` (from 1).

        Raises: ``RunError`` that names the step and the non-finite terms.
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
        """Check the buffered losses with one synchronization.

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
    """A loss or a gradient is infinite or NaN."""


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the global norm of all gradients as a scalar tensor."""
    return _norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def check_weights(step: int, parameters: Iterable[nn.Parameter]) -> None:
    """Check the weights before they are saved, for runs that do not check the gradient.

    Raises: ``NonFiniteError`` if a weight is not finite.
    """
    norm = _norm([parameter.detach() for parameter in parameters]).item()
    if not math.isfinite(norm):
        raise NonFiniteError(f"step {step}: the norm of the weights is {norm}, although the loss was finite")


def spoiled(parameters: Iterable[nn.Parameter]) -> str:
    """Return a sentence to append to a loss error if the weights are no longer finite, otherwise an empty string.

    Only this process's shard is checked: it may be the only process with an error, and must not wait for the others.
    """
    if all(torch.isfinite(own_part(parameter.detach())).all() for parameter in parameters):
        return ""
    return "; the weights are no longer finite: an earlier gradient was not finite"


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = whole(torch.nn.utils.get_total_norm(tensors))
    return norm


def check_norm(step: int, norm: Tensor, accelerator: Accelerator) -> None:
    """Check the gradient norm, unless a loss scaler is active, which overflows at times by design.

    Raises: ``NonFiniteError`` if the norm is not finite.
    """
    if accelerator.scaler is None and not math.isfinite(norm.item()):
        raise NonFiniteError(
            f"step {step}: the norm of the gradient is {norm.item()}, although the loss is finite; "
            "the weights were not updated. Lower the learning rate, or find the operation with torch.autograd.set_detect_anomaly(True)"
        )


def _stop(step: int, total: Tensor, terms: Mapping[str, Tensor]) -> NoReturn:
    values = {name: value.item() for name, value in terms.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    where = ", ".join(bad) if bad else "each term is finite, but their weighted sum is not"
    raise NonFiniteError(f"step {step}: the total loss is {total.item()} ({where})")
