"""What enters the sum: a loss and its weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from kdplug.contracts.loss_sum import LossSum, is_valid_count
from kdplug.errors import SignatureError
from kdplug.objective.batch import Batch
from kdplug.objective.report import TermValue
from kdplug.objective.schedule import Schedule


class Term(Protocol):
    """One summand of the objective. Each is an ``nn.Module`` as well, so that what it holds is trained and saved."""

    name: str
    schedule: Schedule

    @property
    def weight(self) -> float:
        """The weight before any scheduler."""

    def value(self, batch: Batch, weight: float) -> TermValue:
        """The term for one batch, with the weight that it has now."""

    def skipped(self, batch: Batch) -> Tensor:
        """A 0 that is connected to the student tensors and the parameters that ``value`` would use.

        It stands in for a term whose weight is 0 for now, so that no parameter drops out of the graph and DDP has nothing
        to complain about. Nothing is computed, and the teacher is not looked at.
        """


def term_value(result: Any, weight: float, owner: str) -> TermValue:
    """What a loss returned, with a weight. A scalar has count 1.

    Raises: ``SignatureError`` naming ``owner`` for anything but a scalar tensor or a ``LossSum``.
    """
    if isinstance(result, Tensor) and not result.dim():
        return TermValue(result, 1, weight)
    if not isinstance(result, LossSum):
        raise SignatureError(f"{owner} must return a scalar tensor or a LossSum, got {_shown(result)}")
    total: Any = result.total
    count: Any = result.count
    if not isinstance(total, Tensor) or total.dim():
        raise SignatureError(f"{owner} returned a LossSum whose total is no scalar tensor: {_shown(total)}")
    if not isinstance(count, (int, float)) and not (isinstance(count, Tensor) and not count.dim()):
        raise SignatureError(
            f"{owner} returned a LossSum whose count is neither a number nor a scalar: {_shown(count)}"
        )
    if not is_valid_count(count):
        raise SignatureError(f"{owner} returned a LossSum whose count must be finite and >= 0, and is {float(count):g}")
    return TermValue(total, count, weight)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str)) else type(value).__name__


def unique(names: Iterable[str], reserved: Iterable[str]) -> list[str]:
    """The names in order; one that came before, or that is reserved, gets ``_2``, ``_3``…"""
    taken = set(reserved)
    found = []
    for name in names:
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        found.append(free)
    return found
