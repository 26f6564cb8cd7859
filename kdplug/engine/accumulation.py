"""The gradient of one optimizer step: micro-batches and processes added up, each term divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from kdplug.engine.finite import FiniteWatch
from kdplug.engine.forward_state import ForwardState, preserve_forward_state
from kdplug.engine.run import Run
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import Micro, Parts, TrainingModule, split, to_device
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


def merge(reports: Sequence[LossReport]) -> LossReport:
    """The mean of the micro-batches' reports, without gradient: the loss that the optimizer step was taken on.

    A term is the mean over the micro-batches that have it, and its weight is scaled by their share, so that the weighted
    terms add up to the total: with several tasks each micro-batch has the terms of one.
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
            )
            for name, values in found.items()
        }
        return LossReport(torch.stack([report.total for report in reports]).mean(), terms)


@dataclass(slots=True, eq=False)
class Accumulation:
    """Computes gradients. ``model`` is ``pair`` as accelerate wrapped it.

    ``over`` says what each term is a mean over: the ``global`` batch, whatever it was cut into, or each ``micro_batch`` alone
    with the mean of these means taken after.
    """

    run: Run
    accelerator: Accelerator
    pair: TrainingModule
    model: nn.Module
    teacher: TeacherSide | None
    model_args: Mapping[str, Any]
    parameters: Sequence[nn.Parameter]
    over: Literal["global", "micro_batch"] = "global"
    watch: FiniteWatch = field(default_factory=FiniteWatch)
    report: Callable[[Micro], LossReport] = field(init=False)
    device: torch.device = field(init=False)
    moves: bool = field(init=False)
    _agreed: set[Layout] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.moves = self.device.type != "cpu"
        # DDP, FSDP and autocast work on what a forward returns; where none of them is at work, nothing has to be gathered.
        is_bare = self.accelerator.distributed_type is DistributedType.NO and not self.accelerator.native_amp
        self.report = self.pair.report if is_bare else self._through_wrapper

    def _through_wrapper(self, micro: Micro) -> LossReport:
        report: LossReport = self.model(micro)[-1]
        return report

    def gradient(self, window: list[Any], step: int) -> LossReport:
        """Add the gradient of the window's loss to the parameters; processes exchange it once, with the last micro-batch."""
        alone = self.run.num_processes == 1
        if len(window) == 1 and (alone or self.over == "micro_batch"):
            return self._backward(self._forward(window[0], step))
        if self.over == "micro_batch":
            return self._mean_of_means(window, step)
        if len(window) == 1:
            return self._across_processes(window[0], step)
        if alone and same_shapes(window):
            report = self._same_counts(window, step)
            if report is not None:
                return report
        return self._counted_first(window, step)

    def _mean_of_means(self, window: list[Any], step: int) -> LossReport:
        reports = []
        for number, (batch, synchronized) in enumerate(self._micro_batches(window)):
            with synchronized:
                report = self._forward(batch, step, number)
                reports.append(self._backward(report, report.total / len(window)).detach())
        return merge(reports)

    def _across_processes(self, batch: Any, step: int) -> LossReport:
        report = self._forward(batch, step)
        normalization = Normalization.pooled([counts_of(report)], self.accelerator, self._agreed)
        return normalization.report([self._backward(report, normalization.loss(report)).detach()])

    def _same_counts(self, window: list[Any], step: int) -> LossReport | None:
        """The step where counts follow from shapes: no mask anywhere. ``None``, with nothing changed, where they do not."""
        before = ForwardState(self.pair)
        counts: Counts | None = None
        normalization: Normalization | None = None
        reports = []
        for number, (batch, synchronized) in enumerate(self._micro_batches(window)):
            with synchronized:
                report = self._forward(batch, step, number)
                if normalization is None:
                    counts = counts_of(report)
                    normalization = Normalization.uniform(counts, len(window)) if are_numbers(counts) else None
                if normalization is None or counts_of(report) != counts:
                    self._take_back(before)
                    return None
                reports.append(self._backward(report, normalization.loss(report)).detach())
        return normalization.report(reports) if normalization is not None else None

    def _counted_first(self, window: list[Any], step: int) -> LossReport:
        """The step where counts are data: a pass without gradient learns them, since no term can be divided before."""
        teachers, counted = [], []
        with preserve_forward_state(self.pair), torch.no_grad():
            for number, batch in enumerate(window):
                parts = self._parts(batch)
                teachers.append(self._ask(parts))
                counted.append(counts_of(self.pair(self._micro(parts, teachers[-1], number))[-1]))
        normalization = Normalization.pooled(counted, self.accelerator, self._agreed)
        reports = []
        for number, (batch, synchronized) in enumerate(self._micro_batches(window)):
            with synchronized:
                parts = self._parts(batch)
                report = self.report(self._micro(parts, teachers[number], number))
                self.watch.see(step, report)
                reports.append(self._backward(report, normalization.loss(report)).detach())
        return normalization.report(reports)

    def _micro_batches(self, window: list[Any]) -> Iterator[tuple[Any, AbstractContextManager[Any]]]:
        for number, batch in enumerate(window, 1):
            yield batch, nullcontext() if number == len(window) else self.accelerator.no_sync(self.model)

    def _forward(self, batch: Any, step: int, number: int = 0) -> LossReport:
        parts = self._parts(batch)
        report = self.report(self._micro(parts, self._ask(parts), number))
        self.watch.see(step, report)
        return report

    def _backward(self, report: LossReport, loss: Tensor | None = None) -> LossReport:
        loss = report.total if loss is None else loss
        scaler = self.accelerator.scaler
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        return report

    def _ask(self, parts: Parts) -> Any:
        if self.teacher is None:
            return None
        precision = self.accelerator.autocast() if self.accelerator.native_amp else None
        return self.teacher(parts.teacher, self.model_args, parts.cache, precision)

    def _micro(self, parts: Parts, teacher: Any, number: int) -> Micro:
        """The micro-batch ``number`` of this process in its step."""
        run = self.run
        return Micro(
            parts.student,
            teacher,
            self.model_args,
            progress=run.progress,
            step=run.step,
            total_steps=run.total_steps,
            micro_batch=number * run.num_processes + self.accelerator.process_index,
        )

    def _parts(self, batch: Any) -> Parts:
        """The batch as each side gets it, on the device."""
        parts = split(batch)
        if not self.moves:
            return parts
        device = self.device
        student = to_device(parts.student, device)
        teacher = student if parts.teacher is parts.student else to_device(parts.teacher, device)
        return Parts(teacher, student, to_device(parts.cache, device))

    def _take_back(self, before: ForwardState) -> None:
        before.restore()
        for parameter in self.parameters:
            parameter.grad = None
