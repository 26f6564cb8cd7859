"""Dividing each term by what it counts over the whole batch: all micro-batches of a step, on all processes.

A mean of means weighs a micro-batch of two tokens like one of two hundred, so that the gradient depends on how a batch was
cut. Here the sums of the pieces are added, and divided once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdplug.errors import RunError
from kdplug.objective.report import LossReport, TermValue

Counts = dict[str, tuple[Tensor | float, ...]]
"""Term to the counts of its parts (one per head)."""

Layout = tuple[tuple[str, int], ...]
"""The terms of a step by name, each with the number of its parts."""


class Processes(Protocol):
    """The processes that share a batch: an ``Accelerator``, or what stands for another library's."""

    @property
    def device(self) -> torch.device: ...

    @property
    def num_processes(self) -> int: ...

    def reduce(self, tensor: Any, reduction: str) -> Any: ...


def counts_of(report: LossReport) -> Counts:
    """What each part of each term counted; terms that were skipped are left out."""
    return {name: tuple(part.count for part in term.parts) for name, term in report.terms.items() if _is_live(term)}


def are_numbers(counts: Counts) -> bool:
    """Whether every count is a plain number, as without masks: then it follows from the shapes."""
    return all(isinstance(count, (int, float)) for parts in counts.values() for count in parts)


def same_shapes(batches: Sequence[Any]) -> bool:
    """Whether the batches hold tensors of the same shapes in the same places."""
    first = list(_shapes(batches[0]))
    return all(list(_shapes(batch)) == first for batch in batches[1:])


@dataclass(frozen=True, slots=True)
class Normalization:
    """What each part of each term is multiplied with, apart from the term's weight.

    ``factors`` are such that the processes' losses have to be averaged, as DDP averages their gradients.
    """

    factors: Mapping[str, tuple[Tensor | float, ...]]
    micro_batches: int

    @classmethod
    def uniform(cls, counts: Counts, micro_batches: int) -> Normalization:
        """For micro-batches of one process that all count the same, known as plain numbers."""
        factors = {
            name: tuple(1.0 / (float(count) * micro_batches) if float(count) > 0 else 0.0 for count in parts)
            for name, parts in counts.items()
        }
        return cls(factors, micro_batches)

    @classmethod
    def pooled(cls, counted: Sequence[Counts], processes: Processes, agreed: set[Layout]) -> Normalization:
        """From what each micro-batch of this process counts, and those of the other processes.

        A term that a micro-batch does not have (of another task) weighs by the share of those that do. ``agreed`` holds the
        terms and parts that all processes of this run were seen to have. They are gathered once for each new set of terms,
        which is the first step of a run, and the first of each task.

        Raises: ``RunError`` where a term has other parts in one micro-batch than in another, or on another process.
        """
        names = sorted({name for counts in counted for name in counts})
        having = {name: [counts[name] for counts in counted if name in counts] for name in names}
        _check_parts(having)
        if processes.num_processes > 1:
            _check_processes(tuple((name, len(having[name][0])) for name in names), processes.num_processes, agreed)
        dtype = torch.float32 if processes.device.type == "mps" else torch.float64
        rows: list[Tensor | float] = [len(having[name]) for name in names]
        for name in names:
            rows += [sum(column) for column in zip(*having[name], strict=True)]
        table = _vector(rows, processes.device, dtype)
        if processes.num_processes > 1:
            table = processes.reduce(table, reduction="sum")
        shares, sums = table[: len(names)], iter(table[len(names) :])
        factors = {
            name: tuple(share / len(counted) * _inverse(next(sums)) for _ in having[name][0])
            for name, share in zip(names, shares, strict=True)
        }
        return cls(factors, len(counted))

    def loss(self, report: LossReport) -> Tensor:
        """What one micro-batch adds to the loss of the step."""
        total: Tensor | None = None
        for name, term in report.terms.items():
            for part, factor in zip(term.parts, self._factors(name, term), strict=True):
                share = term.weight * factor
                added = part.total * (share.to(part.total.dtype) if isinstance(share, Tensor) else share)
                total = added if total is None else total + added
        return report.total if total is None else total

    def report(self, reports: Sequence[LossReport]) -> LossReport:
        """The step's loss, without gradient, from those of its micro-batches; its mean over processes is the global one."""
        with torch.no_grad():
            totals = [self.loss(report) for report in reports]
            terms: dict[str, TermValue] = {}
            for name in {name: None for report in reports for name in report.terms}:
                values = [report.terms[name] for report in reports if name in report.terms]
                terms[name] = TermValue(self._mean(name, values), 1, values[-1].weight * len(values) / len(reports))
            return LossReport(torch.stack(totals).sum(), terms)

    def _mean(self, name: str, values: Sequence[TermValue]) -> Tensor:
        """The term's mean over all that have it: its factors without the share of the micro-batches."""
        unshared = self.micro_batches / len(values)
        parts = [
            part.total * factor * unshared
            for term in values
            for part, factor in zip(term.parts, self._factors(name, term), strict=True)
        ]
        return torch.stack(parts).sum()

    def _factors(self, name: str, term: TermValue) -> tuple[Tensor | float, ...]:
        return self.factors[name] if _is_live(term) else (1.0,) * len(term.parts)


def _is_live(term: TermValue) -> bool:
    """A term whose schedule is at 0 was not computed: it is an exact 0 and counts nothing."""
    return term.weight != 0


def _check_parts(having: Mapping[str, Sequence[tuple[Tensor | float, ...]]]) -> None:
    for name, rows in having.items():
        numbers = sorted({len(row) for row in rows})
        if len(numbers) > 1:
            raise RunError(
                f"{name} is a sum of {numbers[0]} means in one micro-batch of the step and of {numbers[-1]} in another. The adaptor "
                "has to return equally many heads, and losses, for every batch; one that counts nothing is an empty tensor"
            )


def _check_processes(layout: Layout, num_processes: int, agreed: set[Layout]) -> None:
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
            "the processes do not have the same terms with equally many heads or losses in a step, so their counts cannot be "
            "added. Terms, and the number of heads or losses of each:\n    "
            + "\n    ".join(lines)
            + "\nThe adaptor has to return equally many on every process; one that counts nothing is an empty tensor"
        )
    agreed.add(layout)


def _inverse(count: Tensor) -> Tensor:
    return torch.where(count > 0, 1.0 / count.masked_fill(count <= 0, 1.0), torch.zeros_like(count))


def _vector(values: Sequence[Tensor | float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers and scalars in one tensor, without waiting for the device."""
    return torch.stack([torch.as_tensor(value, dtype=dtype, device=device).detach() for value in values])


def _shapes(value: Any) -> Iterable[Any]:
    if isinstance(value, Tensor):
        yield tuple(value.shape)
    elif isinstance(value, Mapping):
        for key in value:
            yield key
            yield from _shapes(value[key])
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for item in value:
            yield from _shapes(item)
    elif hasattr(value, "task") and hasattr(value, "value"):
        yield value.task
        yield from _shapes(value.value)
