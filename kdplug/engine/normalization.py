"""Normalize each term once over micro-batches and processes, and merge the micro-batches' reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdplug.contracts.outputs import Tagged
from kdplug.contracts.tree import leaves
from kdplug.errors import RunError
from kdplug.objective.report import LossReport, TermValue

Counts = dict[str, tuple[Tensor | float, ...]]
"""Maps each term to the counts of its parts (one per head)."""

TermLayout = tuple[tuple[str, int], ...]
"""The terms of a step: name and number of parts."""


class Processes(Protocol):
    """The processes that share a batch: an ``Accelerator``, or an adapter for another library."""

    @property
    def device(self) -> torch.device: ...

    @property
    def num_processes(self) -> int: ...

    def reduce(self, tensor: Any, reduction: str) -> Any: ...


def counts_of(report: LossReport) -> Counts:
    """Return the count of each part of each term; skipped terms are left out."""
    return {name: tuple(part.count for part in term.parts) for name, term in report.terms.items() if is_live(term)}


def are_numbers(counts: Counts) -> bool:
    """Return whether every count is a plain number, so that it follows from the shapes (no masks)."""
    return all(isinstance(count, (int, float)) for parts in counts.values() for count in parts)


def same_shapes(batches: Sequence[Any]) -> bool:
    """Return whether the batches hold tensors of the same shapes in the same places."""
    first = _shapes(batches[0])
    return all(_shapes(batch) == first for batch in batches[1:])


@dataclass(frozen=True, slots=True)
class Normalization:
    """The factor of each part of each term, apart from the term's weight.

    The ``factors`` assume that the losses of the processes are averaged, as DDP averages gradients.
    """

    factors: Mapping[str, tuple[Tensor | float, ...]]
    micro_batches: int

    @classmethod
    def uniform(cls, counts: Counts, micro_batches: int) -> Normalization:
        """Return the factors for micro-batches of one process that all have the same counts, given as plain numbers."""
        factors = {
            name: tuple(1.0 / (float(count) * micro_batches) if float(count) > 0 else 0.0 for count in parts)
            for name, parts in counts.items()
        }
        return cls(factors, micro_batches)

    @classmethod
    def pooled(cls, counted: Sequence[Counts], processes: Processes, agreed: set[TermLayout]) -> Normalization:
        """Return the factors from the counts of all micro-batches, summed over the processes.

        A term that some micro-batches lack (they belong to another task) is weighted by the share of those that have
        it. Processes may have different numbers of micro-batches. ``agreed`` holds the terms and parts already known to be equal on all processes. They are compared once for
        each new set of terms: at the first step of a run, and at the first step of each task.

        Raises: ``RunError`` if a term has different parts in two micro-batches or on two processes.
        """
        names = sorted({name for counts in counted for name in counts})
        having = {name: [counts[name] for counts in counted if name in counts] for name in names}
        _check_parts(having)
        if processes.num_processes > 1:
            _check_processes(tuple((name, len(having[name][0])) for name in names), processes.num_processes, agreed)
        dtype = torch.float32 if processes.device.type == "mps" else torch.float64
        rows: list[Tensor | float] = [len(counted), *(len(having[name]) for name in names)]
        for name in names:
            rows += [sum(column) for column in zip(*having[name], strict=True)]
        table = _vector(rows, processes.device, dtype)
        if processes.num_processes > 1:
            table = processes.reduce(table, reduction="sum")
        mean, shares = table[0] / processes.num_processes, table[1 : 1 + len(names)]
        sums = iter(table[1 + len(names) :])
        factors = {
            name: tuple(share / mean * _inverse(next(sums)) for _ in having[name][0])
            for name, share in zip(names, shares, strict=True)
        }
        return cls(factors, len(counted))

    def loss(self, report: LossReport) -> Tensor:
        """Return the contribution of one micro-batch to the loss of the step."""
        total: Tensor | None = None
        for name, term in report.terms.items():
            for part, factor in zip(term.parts, self._factors(name, term), strict=True):
                weight = term.weight if term.balance is None else term.weight * term.balance
                share = weight * factor
                added = part.total * (share.to(part.total.dtype) if isinstance(share, Tensor) else share)
                total = added if total is None else total + added
        return report.total if total is None else total

    def values(self, report: LossReport) -> dict[str, Tensor]:
        """Return the contribution of one micro-batch to the unweighted value of each term that it has."""
        found = {}
        for name, term in report.terms.items():
            if is_live(term):
                factors = self._factors(name, term)
                parts = [
                    part.total * (factor.to(part.total.dtype) if isinstance(factor, Tensor) else factor)
                    for part, factor in zip(term.parts, factors, strict=True)
                ]
                found[name] = sum(parts[1:], start=parts[0])
        return found

    def report(self, reports: Sequence[LossReport]) -> LossReport:
        """Return the step's detached loss from its micro-batches; its mean over the processes is the global loss."""
        with torch.no_grad():
            totals = [self.loss(report) for report in reports]
            terms: dict[str, TermValue] = {}
            for name in {name: None for report in reports for name in report.terms}:
                values = [report.terms[name] for report in reports if name in report.terms]
                weight, balance = values[-1].weight * len(values) / len(reports), values[-1].balance
                terms[name] = TermValue(self._mean(name, values), 1, weight, balance=balance)
            return LossReport(torch.stack(totals).sum(), terms)

    def _mean(self, name: str, values: Sequence[TermValue]) -> Tensor:
        """Return the term's mean over the micro-batches that have it, without the factor for their share."""
        unshared = self.micro_batches / len(values)
        parts = [
            part.total * factor * unshared
            for term in values
            for part, factor in zip(term.parts, self._factors(name, term), strict=True)
        ]
        return torch.stack(parts).sum()

    def _factors(self, name: str, term: TermValue) -> tuple[Tensor | float, ...]:
        return self.factors[name] if is_live(term) else (1.0,) * len(term.parts)


def is_live(term: TermValue) -> bool:
    """Return whether the term was computed; a term with weight 0 is skipped, and is exactly 0 with a count of 0."""
    return term.weight != 0


def _check_parts(having: Mapping[str, Sequence[tuple[Tensor | float, ...]]]) -> None:
    for name, rows in having.items():
        numbers = sorted({len(row) for row in rows})
        if len(numbers) > 1:
            raise RunError(
                f"{name} compares a different number of heads or losses in the micro-batches of a step: {numbers[0]} in one "
                f"and {numbers[-1]} in another. The adaptor must return the same number for every batch; return an empty "
                "tensor for a head without items"
            )


def _check_processes(layout: TermLayout, num_processes: int, agreed: set[TermLayout]) -> None:
    if layout in agreed:
        return
    every: list[Any] = [None] * num_processes
    torch.distributed.all_gather_object(every, layout)
    if any(other != layout for other in every):
        lines = [
            f"rank {rank}: {', '.join(f'{name} ({parts})' for name, parts in found) or 'none'}"
            for rank, found in enumerate(every)
        ]
        raise RunError(
            "the processes do not have the same terms with the same number of heads or losses in a step, so their "
            "losses cannot be averaged over the processes. Terms, and the number of heads or losses of each:\n    "
            + "\n    ".join(lines)
            + "\nThe adaptor must return the same number on every process; return an empty tensor for a head "
            "without items"
        )
    agreed.add(layout)


def _inverse(count: Tensor) -> Tensor:
    return torch.where(count > 0, 1.0 / count.masked_fill(count <= 0, 1.0), torch.zeros_like(count))


def _vector(values: Sequence[Tensor | float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stack numbers and scalar tensors into one tensor, without a device synchronization."""
    return torch.stack([torch.as_tensor(value, dtype=dtype, device=device).detach() for value in values])


def _shapes(batch: Any) -> list[tuple[Any, ...]]:
    task = batch.task if isinstance(batch, Tagged) else None
    return [(task,), *((path, leaf.shape if isinstance(leaf, Tensor) else None) for path, leaf in leaves(batch))]


def merge(reports: Sequence[LossReport]) -> LossReport:
    """Return the mean of the micro-batches' reports, detached: the loss of the optimizer step.

    A term is the mean over the micro-batches that have it, and its weight is scaled by their share, so that the
    weighted terms add up to the total. With several tasks, each micro-batch has the terms of one task.
    """
    if len(reports) == 1:
        return reports[0]
    with torch.no_grad():
        found: dict[str, list[TermValue]] = {}
        for report in reports:
            for name, term in report.terms.items():
                found.setdefault(name, []).append(term)
        terms = {
            name: TermValue(
                torch.stack([term.value for term in values]).sum() / len(values),
                1,
                values[-1].weight * (len(values) / len(reports)),
                balance=values[-1].balance,
            )
            for name, values in found.items()
        }
        return LossReport(torch.stack([report.total for report in reports]).mean(), terms)


def scaled(report: LossReport, factor: Tensor | float) -> LossReport:
    """Return the report of a process, whose mean over the processes is the loss of the step, times its ``factor``."""
    terms = {
        name: TermValue(term.value * factor, 1, term.weight, balance=term.balance)
        for name, term in report.terms.items()
    }
    return LossReport(report.total * factor, terms)
