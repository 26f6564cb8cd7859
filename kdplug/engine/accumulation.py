"""The gradient of one optimizer step: micro-batches and processes added up, each term divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from kdplug.engine.batch import Parts, split, to_device
from kdplug.engine.finite import FiniteWatch
from kdplug.engine.merge import merge
from kdplug.engine.normalization import Counts, Layout, Normalization, are_numbers, counts_of, same_shapes
from kdplug.engine.pair import Micro, Pair
from kdplug.engine.run import Run
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.volatile import Volatile, kept
from kdplug.objective.report import LossReport


@dataclass(slots=True, eq=False)
class Accumulation:
    """Computes gradients. ``model`` is ``pair`` as accelerate wrapped it.

    ``over`` says what each term is a mean over: the ``global`` batch, whatever it was cut into, or each ``micro_batch`` alone
    with the mean of these means taken after.
    """

    run: Run
    accelerator: Accelerator
    pair: Pair
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
        before = Volatile(self.pair)
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
        with kept(self.pair), torch.no_grad():
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

    def _take_back(self, before: Volatile) -> None:
        before.restore()
        for parameter in self.parameters:
            parameter.grad = None
