"""Accumulate the gradient of an optimizer step over micro-batches and processes, and normalize each term once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from kdplug.contracts.outputs import Tagged
from kdplug.contracts.tree import leaves, tensors
from kdplug.engine.finite import FiniteWatch
from kdplug.engine.forward_state import ForwardState, preserve_forward_state
from kdplug.engine.run import Run
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import Micro, Parts, TrainingModule, split, to_device
from kdplug.errors import RunError
from kdplug.objective.report import LossReport, TermValue

Counts = dict[str, tuple[Tensor | float, ...]]
"""Maps each term to the counts of its parts (one per head)."""

TermLayout = tuple[tuple[str, int], ...]
"""The terms of a step: name and number of parts."""


def _check_unchanged(kept: list[list[tuple[Tensor, int]]]) -> None:
    """Raise ``RunError`` if a tensor changed after its version was recorded: a model may reuse its outputs' memory."""
    if any(one._version != version for micro_batch in kept for one, version in micro_batch):  # noqa: SLF001
        raise RunError(
            "the teacher overwrote the outputs of an earlier micro-batch of the same step. Return copies "
            "(.clone()) from its forward or its adaptor"
        )


class Processes(Protocol):
    """The processes that share a batch: an ``Accelerator``, or an adapter for another library."""

    @property
    def device(self) -> torch.device: ...

    @property
    def num_processes(self) -> int: ...

    def reduce(self, tensor: Any, reduction: str) -> Any: ...


def counts_of(report: LossReport) -> Counts:
    """Return the count of each part of each term; skipped terms are left out."""
    return {name: tuple(part.count for part in term.parts) for name, term in report.terms.items() if _is_live(term)}


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
                share = term.weight * factor
                added = part.total * (share.to(part.total.dtype) if isinstance(share, Tensor) else share)
                total = added if total is None else total + added
        return report.total if total is None else total

    def report(self, reports: Sequence[LossReport]) -> LossReport:
        """Return the step's detached loss from its micro-batches; its mean over the processes is the global loss."""
        with torch.no_grad():
            totals = [self.loss(report) for report in reports]
            terms: dict[str, TermValue] = {}
            for name in {name: None for report in reports for name in report.terms}:
                values = [report.terms[name] for report in reports if name in report.terms]
                terms[name] = TermValue(self._mean(name, values), 1, values[-1].weight * len(values) / len(reports))
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
        return self.factors[name] if _is_live(term) else (1.0,) * len(term.parts)


def _is_live(term: TermValue) -> bool:
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
            )
            for name, values in found.items()
        }
        return LossReport(torch.stack([report.total for report in reports]).mean(), terms)


def _scaled(report: LossReport, factor: Tensor | float) -> LossReport:
    """Return the report of a process, whose mean over the processes is the loss of the step, times its ``factor``."""
    terms = {name: TermValue(term.value * factor, 1, term.weight) for name, term in report.terms.items()}
    return LossReport(report.total * factor, terms)


@dataclass(slots=True, eq=False)
class Accumulation:
    """Computes gradients. ``model`` is ``pair`` wrapped by accelerate.

    ``over`` sets what each term is averaged over: ``global`` averages over the whole batch of the step, however it is
    split; ``micro_batch`` averages within each micro-batch, then averages these means. ``uneven`` is true if the processes
    may have different numbers of micro-batches in a step.
    """

    run: Run
    accelerator: Accelerator
    pair: TrainingModule
    model: nn.Module
    teacher: TeacherSide | None
    model_args: Mapping[str, Any]
    parameters: Sequence[nn.Parameter]
    over: Literal["global", "micro_batch"] = "global"
    uneven: bool = False
    watch: FiniteWatch = field(default_factory=FiniteWatch)
    report: Callable[[Micro], LossReport] = field(init=False)
    device: torch.device = field(init=False)
    moves: bool = field(init=False)
    _agreed: set[TermLayout] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.moves = self.device.type != "cpu"
        # DDP, FSDP and autocast act on forward(). Without them, skip forward() and its output tuple.
        is_bare = self.accelerator.distributed_type is DistributedType.NO and not self.accelerator.native_amp
        self.report = self.pair.report if is_bare else self._through_wrapper

    def _through_wrapper(self, micro: Micro) -> LossReport:
        report: LossReport = self.model(micro)[-1]
        return report

    def gradient(self, window: list[Any], step: int) -> LossReport:
        """Accumulate the gradient of the step's micro-batches; processes synchronize once, at the last one."""
        alone = self.run.num_processes == 1
        if len(window) == 1 and (alone or (self.over == "micro_batch" and not self.uneven)):
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
        number_of_batches: Tensor | int = len(window)
        if self.uneven:
            number_of_batches = self.accelerator.reduce(torch.tensor(float(len(window)), device=self.device), "mean")
        reports = []
        for number, (batch, synchronized) in enumerate(self._micro_batches(window)):
            with synchronized:
                report = self._forward(batch, step, number)
                reports.append(self._backward(report, report.total / number_of_batches).detach())
        merged = merge(reports)
        return _scaled(merged, len(window) / number_of_batches) if self.uneven else merged

    def _across_processes(self, batch: Any, step: int) -> LossReport:
        report = self._forward(batch, step)
        normalization = Normalization.pooled([counts_of(report)], self.accelerator, self._agreed)
        return normalization.report([self._backward(report, normalization.loss(report)).detach()])

    def _same_counts(self, window: list[Any], step: int) -> LossReport | None:
        """Run a step whose counts follow from shapes (no mask). If they do not, undo everything and return ``None``."""
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
                    before.restore()
                    for parameter in self.parameters:
                        parameter.grad = None
                    return None
                reports.append(self._backward(report, normalization.loss(report)).detach())
        return normalization.report(reports) if normalization is not None else None

    def _counted_first(self, window: list[Any], step: int) -> LossReport:
        """Run a step whose counts depend on the data: count in a first pass without gradient, then divide each term."""
        teachers, counted, kept = [], [], []
        with preserve_forward_state(self.pair), torch.no_grad():
            for number, batch in enumerate(window):
                parts = self._parts(batch)
                teachers.append(self._ask(parts))
                kept.append([(one, one._version) for one in tensors(teachers[-1]) if not one.is_inference()])  # noqa: SLF001
                counted.append(counts_of(self.pair(self._micro(parts, teachers[-1], number))[-1]))
        _check_unchanged(kept)
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
        if not loss.requires_grad:
            raise self._no_gradient(report)
        scaler = self.accelerator.scaler
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        return report

    def _no_gradient(self, report: LossReport) -> RunError:
        step = self.run.step + 1
        live = ", ".join(name for name, term in report.terms.items() if _is_live(term))
        if not live:
            return RunError(
                f"the loss of step {step} has no gradient: the weight of every term ({', '.join(report.terms)}) is 0. "
                "Set a weight for one of them, or a scheduler that does not start at 0"
            )
        return RunError(
            f"the loss of step {step} has no gradient, so it cannot train the student (terms: {live}). Does the student's "
            "forward(), or adaptor_S, run under torch.no_grad() or torch.inference_mode(), detach its outputs, or compute "
            "them with numpy or argmax? A loss that is off for some epochs returns student[:0].sum(), a 0 with gradient"
        )

    def _ask(self, parts: Parts) -> Any:
        if self.teacher is None:
            return None
        precision = self.accelerator.autocast() if self.accelerator.native_amp else None
        return self.teacher(parts.teacher, self.model_args, parts.cache, precision)

    def _micro(self, parts: Parts, teacher: Any, number: int) -> Micro:
        """Build micro-batch ``number`` of this process in its step."""
        run = self.run
        return Micro(
            parts.student,
            teacher,
            self.model_args,
            progress=run.progress,
            step=run.step,
            total_steps=run.total_steps,
            epoch=run.epoch if parts.epoch is None else parts.epoch,
            ids=parts.ids,
            micro_batch=number * run.num_processes + self.accelerator.process_index,
        )

    def _parts(self, batch: Any) -> Parts:
        """Split the batch into teacher, student and cache parts, on the device."""
        parts = split(batch)
        if not self.moves:
            return parts
        device = self.device
        student = to_device(parts.student, device)
        teacher = student if parts.teacher is parts.student else to_device(parts.teacher, device)
        cache, ids = to_device(parts.cache, device), to_device(parts.ids, device)
        return parts._replace(teacher=teacher, student=student, cache=cache, ids=ids)
