"""Objective output: the total and its terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kdplug.contracts.loss import LossSum


@dataclass(slots=True, eq=False)
class TermValue:
    """One term of the objective in one call.

    ``total / count`` is the unweighted value: a loss that is a mean over items keeps its number of items, any other
    loss has count 1. If a term is the sum of several means, one per head, ``heads`` holds them, ``total`` is their sum
    and ``count`` is 1. A scheduled term whose weight is 0 in this call is not computed and has count 0. ``balance`` is the
    factor that a balancer sets, on the device; it multiplies ``weight``.
    """

    total: Tensor
    count: Tensor | float
    weight: float
    heads: tuple[LossSum, ...] = ()
    balance: Tensor | None = None

    @property
    def parts(self) -> tuple[LossSum, ...]:
        """The sums and counts whose means add up to the value; each must be pooled over batches separately."""
        return self.heads or (LossSum(self.total, self.count),)

    @property
    def value(self) -> Tensor:
        """The unweighted mean, or 0 if nothing was counted."""
        return LossSum(self.total, self.count).value

    @property
    def weighted(self) -> Tensor:
        """The term's contribution to the total."""
        value = LossSum(self.total, self.count).value
        if self.balance is not None:
            return value * self.factor(value)
        return value if self.weight == 1 else value * self.weight

    def factor(self, like: Tensor) -> Tensor | float:
        """Return the weight times the balancer's factor, in the precision of ``like``."""
        return self.weight if self.balance is None else (self.weight * self.balance).to(like.dtype)

    def detach(self) -> TermValue:
        """Return a copy without gradient."""
        heads = tuple(LossSum(head.total.detach(), _detached(head.count)) for head in self.heads)
        return TermValue(self.total.detach(), _detached(self.count), self.weight, heads, self.balance)


@dataclass(frozen=True, slots=True, eq=False)
class LossReport:
    """The loss to differentiate, and its terms by name."""

    total: Tensor
    terms: Mapping[str, TermValue]

    def detach(self) -> LossReport:
        """Return a copy without gradient, for logging."""
        return LossReport(self.total.detach(), {name: term.detach() for name, term in self.terms.items()})

    def __repr__(self) -> str:
        """Show the total and each term as weight times unweighted value. Waits for the device."""
        terms = [
            f"{name}={float(term.factor(term.total)):g}*{float(term.value.detach()):.6g}"
            for name, term in self.terms.items()
        ]
        return f"LossReport(total={float(self.total.detach()):.6g}, {', '.join(terms)})"


def weighted_sum(values: Sequence[TermValue]) -> Tensor:
    """Sum the weighted terms."""
    total = None
    for value in values:
        total = _added(total, value)
    assert total is not None
    return total


def _added(total: Tensor | None, value: TermValue) -> Tensor:
    """Return ``total`` plus the weighted value, in one operation if the count is a number."""
    count = value.count
    if value.balance is not None:
        return value.weighted if total is None else total + value.weighted
    if isinstance(count, Tensor):
        return value.weighted if total is None else total.add(value.value, alpha=value.weight)
    share = value.weight / count if count > 0 else 0.0
    if total is None:
        return value.total if share == 1 else value.total * share
    return total.add(value.total, alpha=share)


def over_heads(values: Sequence[TermValue]) -> TermValue:
    """Sum the means of several heads into one term."""
    total = values[0].value
    for value in values[1:]:
        total = total + value.value
    return TermValue(total, 1, values[0].weight, tuple([LossSum(value.total, value.count) for value in values]))


def _detached(count: Tensor | float) -> Tensor | float:
    return count.detach() if isinstance(count, Tensor) else count
