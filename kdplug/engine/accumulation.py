"""Accumulate the gradient of an optimizer step over micro-batches and processes, and normalize each term once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from kdplug.contracts.tree import tensors
from kdplug.engine.finite import FiniteWatch
from kdplug.engine.forward_state import ForwardState, preserve_forward_state
from kdplug.engine.normalization import (
    Counts,
    Normalization,
    TermLayout,
    are_numbers,
    counts_of,
    is_live,
    merge,
    same_shapes,
    scaled,
)
from kdplug.engine.run import Run
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import Micro, Parts, TrainingModule, split, to_device
from kdplug.errors import RunError
from kdplug.objective.report import LossReport


class TermMeasure(Protocol):
    """Gets the contribution of each micro-batch of a step to the unweighted value of each term, with its graph."""

    def add(self, values: Mapping[str, Tensor]) -> None: ...

    def clear(self) -> None: ...


def _check_unchanged(kept: list[list[tuple[Tensor, int]]]) -> None:
    """Raise ``RunError`` if a tensor changed after its version was recorded: a model may reuse its outputs' memory."""
    if any(one._version != version for micro_batch in kept for one, version in micro_batch):  # noqa: SLF001
        raise RunError(
            "the teacher overwrote the outputs of an earlier micro-batch of the same step. Return copies "
            "(.clone()) from its forward or its adaptor"
        )


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
    measured: TermMeasure | None = None
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
                reports.append(self._backward(report, report.total / number_of_batches, number_of_batches).detach())
        merged = merge(reports)
        return scaled(merged, len(window) / number_of_batches) if self.uneven else merged

    def _across_processes(self, batch: Any, step: int) -> LossReport:
        report = self._forward(batch, step)
        normalization = Normalization.pooled([counts_of(report)], self.accelerator, self._agreed)
        return normalization.report([self._backward(report, normalization.loss(report), normalization).detach()])

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
                    if self.measured is not None:
                        self.measured.clear()
                    return None
                reports.append(self._backward(report, normalization.loss(report), normalization).detach())
        return normalization.report(reports) if normalization is not None else None

    def _counted_first(self, window: list[Any], step: int) -> LossReport:
        """Run a step whose counts depend on the data: count in a first pass without gradient, then divide each term."""
        teachers, normalization = self._count(window)
        reports = []
        for number, (batch, synchronized) in enumerate(self._micro_batches(window)):
            with synchronized:
                parts = self._parts(batch)
                report = self.report(self._micro(parts, teachers[number], number))
                self.watch.see(step, report)
                reports.append(self._backward(report, normalization.loss(report), normalization).detach())
        return normalization.report(reports)

    def _count(self, window: list[Any]) -> tuple[list[Any], Normalization]:
        """Return the teacher's outputs for each micro-batch, and the factors of the terms over all of them."""
        teachers, counted, kept = [], [], []
        with preserve_forward_state(self.pair), torch.no_grad():
            for number, batch in enumerate(window):
                parts = self._parts(batch)
                teachers.append(self._ask(parts))
                kept.append([(one, one._version) for one in tensors(teachers[-1]) if not one.is_inference()])  # noqa: SLF001
                counted.append(counts_of(self.pair(self._micro(parts, teachers[-1], number))[-1]))
        _check_unchanged(kept)
        return teachers, Normalization.pooled(counted, self.accelerator, self._agreed)

    def report_only(self, window: list[Any], step: int) -> LossReport:
        """Return the report of a step that is measured, but trains nothing. State that a forward pass changes is restored."""
        alone = self.run.num_processes == 1
        normalization: Normalization | Tensor | int = len(window)
        teachers = None
        if self.over == "global" and not (alone and len(window) == 1):
            teachers, normalization = self._count(window)
        elif self.uneven:
            normalization = self.accelerator.reduce(torch.tensor(float(len(window)), device=self.device), "mean")
        reports = []
        with preserve_forward_state(self.pair):
            for number, batch in enumerate(window):
                with self.accelerator.no_sync(self.model):  # DDP expects a backward pass otherwise
                    parts = self._parts(batch)
                    teacher = self._ask(parts) if teachers is None else teachers[number]
                    report = self.report(self._micro(parts, teacher, number))
                    self.watch.see(step, report)
                    self._measure(report, normalization)
                    reports.append(report.detach())
        if isinstance(normalization, Normalization):
            return normalization.report(reports)
        merged = merge(reports)
        return scaled(merged, len(window) / normalization) if self.uneven else merged

    def _micro_batches(self, window: list[Any]) -> Iterator[tuple[Any, AbstractContextManager[Any]]]:
        for number, batch in enumerate(window, 1):
            yield batch, nullcontext() if number == len(window) else self.accelerator.no_sync(self.model)

    def _forward(self, batch: Any, step: int, number: int = 0) -> LossReport:
        parts = self._parts(batch)
        report = self.report(self._micro(parts, self._ask(parts), number))
        self.watch.see(step, report)
        return report

    def _backward(
        self, report: LossReport, loss: Tensor | None = None, normalization: Normalization | Tensor | int = 1
    ) -> LossReport:
        loss = report.total if loss is None else loss
        if not loss.requires_grad:
            raise self._no_gradient(report)
        self._measure(report, normalization)
        scaler = self.accelerator.scaler
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        return report

    def _measure(self, report: LossReport, normalization: Normalization | Tensor | int) -> None:
        """Pass on the terms' values of a micro-batch; without a normalization, divided by the number of micro-batches."""
        if self.measured is None:
            return
        if isinstance(normalization, Normalization):
            self.measured.add(normalization.values(report))
        else:
            self.measured.add(
                {name: term.value / normalization for name, term in report.terms.items() if is_live(term)}
            )

    def _no_gradient(self, report: LossReport) -> RunError:
        step = self.run.step + 1
        live = ", ".join(name for name, term in report.terms.items() if is_live(term))
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
