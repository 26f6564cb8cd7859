"""The training loop: one optimizer step for each window of micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from kdplug.engine.accumulation import Accumulation
from kdplug.engine.checkpoint import Checkpoints
from kdplug.engine.event import Audience
from kdplug.engine.finite import check_norm
from kdplug.engine.journal import Journal
from kdplug.engine.plan import Plan
from kdplug.engine.preemption import Preemption
from kdplug.engine.progress import Display
from kdplug.engine.request import Callback
from kdplug.engine.run import Run
from kdplug.engine.tracking import Tracking, losses
from kdplug.engine.window import Windows
from kdplug.objective.report import LossReport


@dataclass(slots=True, eq=False)
class Loop:
    """Everything a step needs, built.

    ``parameters`` are what gradients are cleared and clipped for: the student's, the objective's and the optimizer's.
    """

    run: Run
    plan: Plan
    accelerator: Accelerator
    accumulation: Accumulation
    optimizer: Optimizer
    scheduler: Any
    parameters: list[nn.Parameter]
    max_grad_norm: float | None
    logging_steps: int
    events: Audience
    display: Display
    tracking: Tracking
    journal: Journal
    callback: Callback | None
    checkpoints: Checkpoints
    identity: Mapping[str, Any]
    preemption: Preemption
    windows: Windows
    written: list[Path] = field(default_factory=list)
    report: LossReport | None = None

    def walk(self) -> None:
        """Take optimizer steps until the plan is done, the data are, or the process is told to stop."""
        self._clear_gradients()
        if self.run.step >= self.plan.total_steps:
            return
        for window in self.windows:
            self._step(window)
            if self.run.step >= self.plan.total_steps:
                return

    def _step(self, window: list[Any]) -> None:
        run, step = self.run, self.run.step + 1
        logs = step % self.logging_steps == 0 or step == self.plan.total_steps
        saves = self.plan.is_save(step)
        asks = logs or saves or self.run.num_processes == 1
        report = self.accumulation.gradient(window, step)
        if logs or saves:
            self.accumulation.watch.settle()
        self._update(step)
        run.step = step
        self.events.step_end(run, step, report)
        if logs:
            self.report = report.detach()
            self._log(step, report)
        self.display.step(step)
        if saves:
            self._save(step)
        if asks and self.preemption.agreed(self.accelerator):
            if not saves:
                self.accumulation.watch.settle()
                self._write(step)
            self.preemption.leave()

    def _update(self, step: int) -> None:
        if self.max_grad_norm is not None:
            if self.accelerator.scaler is None:
                norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
                check_norm(step, norm)
            else:
                self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        if self.scheduler is not None and not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _log(self, step: int, report: LossReport) -> None:
        values = losses(self.accelerator, report)
        self.tracking.write(values, step)
        self.journal.write(values, step)
        self.display.losses(values)

    def _save(self, step: int) -> None:
        run = self.run
        self._write(step)
        if self.callback is not None:
            self.callback(model=run.model, step=step)
            run.model.train()

    def _write(self, step: int) -> None:
        run = self.run
        modules = {"student": run.model, "objective": run.objective}
        shared = {"identity": dict(self.identity), **self._learning()}
        own = {"position": self.windows.position()}
        path = self.checkpoints.write(step, modules, shared, own, self.accelerator)
        if run.is_main:
            self.written.append(path)

    def _learning(self) -> dict[str, Any]:
        """The state of the optimizer, the learning-rate scheduler and the loss scaler."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.run.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
