"""Update the balancers of a run from the terms of each optimizer step, on all micro-batches and processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdplug.config.error_path import prefixed
from kdplug.contracts.outputs import Tagged
from kdplug.engine.accumulation import Accumulation
from kdplug.engine.accumulation_batches import AccumulationBatches
from kdplug.engine.observe.activity import busy
from kdplug.engine.run import Run
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError
from kdplug.objective.balance import Balance, gradient_of, norm_of
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport
from kdplug.objective.task_objective import TaskObjective


class TaskBalance:
    """The balancer of one objective. The names of its terms in a report start with ``prefix``, which holds the task."""

    def __init__(self, task: str, balance: Balance, student: nn.Module) -> None:
        self.task = task
        self.prefix = f"{task}/" if task else ""
        self.balance = balance
        self.parameters: list[nn.Parameter] = []
        if balance.needs_gradients:
            with prefixed(*([task] if task else [])):
                self.parameters = balance.parameters_of(student)

    def own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the task's terms, by the names that its objective has for them."""
        names = [term.name for term in self.balance.terms]
        return {name: values[self.prefix + name] for name in names if self.prefix + name in values}


class Gradients:
    """Sums of the gradients of each term over the micro-batches of a step."""

    def __init__(self, balances: list[TaskBalance], accelerator: Accelerator) -> None:
        self._balances = balances
        self._accelerator = accelerator
        self._sums: dict[str, list[Tensor]] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the gradient of each term's contribution, before the backward pass of the micro-batch."""
        for one in self._balances:
            for name, value in one.own(values).items():
                found = gradient_of(self._scaled(value), one.parameters)
                key = one.prefix + name
                self._counts[key] = self._counts.get(key, 0) + 1
                if key in self._sums:
                    torch._foreach_add_(self._sums[key], found)
                else:
                    self._sums[key] = found

    def clear(self) -> None:
        """Forget the micro-batches so far."""
        self._sums.clear()
        self._counts.clear()

    def norms(self, one: TaskBalance, micro_batches: int) -> dict[str, Tensor]:
        """Return the norm of each term's gradient over all processes, and forget the task's sums.

        The gradient is a mean over the micro-batches that have the term.
        """
        dtype, found = one.balance.weights.dtype, {}
        for name in [term.name for term in one.balance.terms]:
            key = one.prefix + name
            if key not in self._sums:
                continue
            sums, count = self._sums.pop(key), self._counts.pop(key)
            if self._accelerator.num_processes > 1:
                sums = [self._accelerator.reduce(part, reduction="mean") for part in sums]
            norm = norm_of(sums, dtype)
            found[name] = norm * (micro_batches / count) / self._scaled(torch.ones_like(norm))
        return found

    def _scaled(self, value: Tensor) -> Tensor:
        """Multiply by the factor of the loss scaler, so that the gradient of float16 activations does not underflow."""
        scaler = self._accelerator.scaler
        return value if scaler is None else scaler.scale(value)


class Balancing:
    """The balancers of a run's objectives; without any, nothing is computed.

    Raises: ``RunError`` if a balancer requests gradients under FSDP2; ``ConfigError`` if its layer does not exist.
    """

    def __init__(self, pair: TrainingModule, run: Run, accelerator: Accelerator) -> None:
        self._run = run
        self._accelerator = accelerator
        self.balances = [
            TaskBalance(task, objective.balance, pair.student)
            for task, objective in _objectives(pair.objective)
            if objective.balance is not None
        ]
        asking = [one for one in self.balances if one.balance.needs_gradients]
        if asking and accelerator.is_fsdp2:
            raise RunError(
                f"{asking[0].balance.owner} requests the gradients of each term, which FSDP2 does not keep. Use DDP, or a balancer "
                "that requests values only, such as dwa",
                field="balancer",
            )
        in_steps = [one for one in asking if not one.balance.calibrate_steps]
        self._gradients = Gradients(in_steps, accelerator)
        self.measured = self._gradients if in_steps else None

    def update(self, report: LossReport, micro_batches: int) -> None:
        """Update the balancers whose terms are in the report of an optimizer step that was taken."""
        for one in self.balances:
            if not one.balance.calibrate_steps:
                self._update(one, report, self._gradients, micro_batches)

    def skip(self) -> None:
        """Forget a step that was not taken."""
        self._gradients.clear()
        for one in self.balances:
            one.balance.without_update()

    def _update(self, one: TaskBalance, report: LossReport, gradients: Gradients, micro_batches: int) -> None:
        terms = one.own(report.terms)
        if not terms:
            return
        values = torch.stack([term.value.detach().to(one.balance.weights) for term in terms.values()])
        if self._accelerator.num_processes > 1:
            values = self._accelerator.reduce(values, reduction="mean")
        norms = gradients.norms(one, micro_batches) if one.balance.needs_gradients else None
        run = self._run
        with prefixed(*([one.task] if one.task else [])):
            one.balance.take(
                dict(zip(terms, values.unbind(), strict=True)),
                norms,
                run.progress,
                run.step,
                run.total_steps,
                epoch=run.epoch,
            )

    def calibrate(self, windows: AccumulationBatches, accumulation: Accumulation) -> None:
        """Compute the weights that are fixed before training, from the first steps of the data, and return to their start.

        A task gets the first steps that have a batch of it.

        Raises: ``ConfigError`` if a term has no gradient in these steps; ``RunError`` for data that can be read only once.
        """
        waiting = {one.task: one.balance.calibrate_steps for one in self.balances if one.balance.calibrate_steps}
        if not waiting:
            return
        windows.check_repeatable()
        start = windows.mark()
        gradients = Gradients([one for one in self.balances if one.task in waiting], self._accelerator)
        before, accumulation.measured = accumulation.measured, gradients
        with ExitStack() as stack, busy("Calibrating the weights of the terms"):
            for one in self.balances:
                if one.task in waiting:
                    stack.enter_context(prefixed(*([one.task] if one.task else [])))
                    stack.enter_context(one.balance.calibrating())
            for _, window in zip(range(self._run.total_steps), windows, strict=False):
                self._measure(window, accumulation, gradients, waiting)
                if not any(waiting.values()):
                    break
        accumulation.measured = before
        windows.rewind(start)

    def _measure(
        self, window: list[Any], accumulation: Accumulation, gradients: Gradients, waiting: dict[str, int]
    ) -> None:
        wanted = [batch for batch in window if waiting.get(batch.task if isinstance(batch, Tagged) else "")]
        if not wanted:
            return
        report = accumulation.report_only(wanted, 1)
        for one in self.balances:
            if waiting.get(one.task) and one.own(report.terms):
                self._update(one, report, gradients, len(wanted))
                waiting[one.task] -= 1


def _objectives(objective: Any) -> Iterator[tuple[str, Objective]]:
    if isinstance(objective, TaskObjective):
        for task in objective.tasks:
            yield task, objective.of(task)
    else:
        yield "", objective
