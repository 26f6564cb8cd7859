"""The training loop: one optimizer step per list of micro-batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from kdplug.engine.accumulation import Accumulation
from kdplug.engine.accumulation_batches import AccumulationBatches
from kdplug.engine.balancing import Balancing
from kdplug.engine.checkpoint.checkpoint import Checkpoints
from kdplug.engine.checkpoint.preemption import Preemption
from kdplug.engine.checkpoint.weights import buffers_to_save, gradients_required
from kdplug.engine.evaluation import Evaluation, Standing
from kdplug.engine.external_teacher import CalledTeacher, TeacherCallError
from kdplug.engine.finite import NonFiniteError, check_norm, check_weights, gradient_norm, spoiled
from kdplug.engine.forward_state import ForwardState
from kdplug.engine.observe.activity import busy, counted
from kdplug.engine.observe.counted import CountWatch
from kdplug.engine.observe.event import Actor, Callbacks
from kdplug.engine.observe.progress import Display
from kdplug.engine.observe.tracking import Journal, Tracking, losses
from kdplug.engine.optimizer import GradientWatch, RateWatch, check_constant_rate
from kdplug.engine.parallel.fsdp import called_alone, gathered, whole
from kdplug.engine.parallel.process import check_all_ended, first_of_all, on_main
from kdplug.engine.run import Callback, Plan, Run, length
from kdplug.engine.updated_teacher import UpdatedTeacher
from kdplug.errors import RunError
from kdplug.host.name import printable
from kdplug.objective.report import LossReport


@dataclass(slots=True, eq=False)
class Loop:
    """The built objects of a run, and its steps.

    ``parameters`` are those whose gradients are cleared and clipped: the student's, the objective's and the
    optimizer's. ``required`` is ``requires_grad`` of the student's at the start of the run, before any resume.
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
    counts: CountWatch
    events: Callbacks
    display: Display
    tracking: Tracking
    journal: Journal
    callback: Callback | None
    checkpoints: Checkpoints
    identity: Mapping[str, Any]
    preemption: Preemption
    windows: AccumulationBatches
    balancing: Balancing
    required: Mapping[str, bool]
    evaluation: Evaluation | None = None
    actor: Actor | None = None
    standing: Standing = field(default_factory=Standing)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    skipped: int = 0
    stopped_early: bool = False
    rates: RateWatch = field(default_factory=RateWatch)
    written: list[Path] = field(default_factory=list)
    report: LossReport | None = None
    gradients: GradientWatch | None = None
    updating: UpdatedTeacher | None = None

    def walk(self) -> None:
        """Run optimizer steps until the plan is complete, the data are exhausted, or a signal stops the process."""
        self._clear_gradients()
        if self.run.step >= self.plan.total_steps or self.stopped_early:
            return
        if self.scheduler is None:
            check_constant_rate(self.run.optimizer)
        if self.run.is_main:
            self.gradients = GradientWatch(self.run.optimizer, self.run.model.named_parameters())
        rescue = Rescue.of(self)
        for window in self.windows:
            self.run.epoch = self.windows.epoch
            with nullcontext() if rescue is None else rescue.around_step():
                self._step(window)
            if self.run.step >= self.plan.total_steps or self.stopped_early:
                return
        check_all_ended(self.accelerator, self.run.step, self.plan.total_steps)

    def _step(self, window: list[Any]) -> None:
        run, step = self.run, self.run.step + 1
        ends = step == self.plan.total_steps
        logs = ends or step % self.logging_steps == 0
        saves = self.plan.is_save(step)
        looks = ends or saves or (self.evaluation is not None and self._evaluates(self.evaluation, step, saves=saves))
        if self.actor is not None:
            self.actor.step_start(run)
        report = self._learn(window, step, settles=logs or looks, looks=looks)
        run.step = step
        self.events.step_end(run, step, report)
        if looks:
            self._check_unfrozen()
        if logs:
            self.report = report.detach()
            self._log(step, report)
            self.counts.after_log(step, self.accelerator, is_last=ends)
        self.display.step(step)
        if self.evaluation is not None:
            saves = self._evaluate(self.evaluation, step, saves) or saves
        if not ends and (run.num_processes == 1 or self.actor is not None or logs or looks):
            saves = self._stop(step, is_looked_at=looks) or saves
        if saves:
            self._save(step)
        alone = run.num_processes == 1
        if alone and self.preemption.signal is None:
            return
        if (logs or saves or alone) and self.preemption.agreed(self.accelerator):
            if not saves:
                self.accumulation.watch.settle()
                check_weights(step, self.parameters)
                self._write(step)
            self.preemption.leave()

    def _learn(self, window: list[Any], step: int, *, settles: bool, looks: bool) -> LossReport:
        """Run the optimizer step, unless the loss is not finite or, if ``looks`` is true, the gradient is not finite.

        An unchecked non-finite gradient shows up in the next loss.
        """
        try:
            report = self.accumulation.gradient(window, step)
            if self.gradients is not None:
                self.gradients.see(ends=step == self.plan.total_steps)
            if self.on_nonfinite == "skip":
                return self._learn_or_skip(report, step, len(window))
            if settles:
                self.accumulation.watch.settle()
            if looks:
                check_norm(step, gradient_norm(self.parameters), self.accelerator)
            self._update(step)
            self.balancing.update(report, len(window))
        except NonFiniteError as error:
            last = (
                f"the last good checkpoint is {self.written[-1].parent}"
                if self.written
                else "there is no checkpoint yet"
            )
            error.message += f"{spoiled(self.parameters)}; {last}"
            raise
        return report

    def _learn_or_skip(self, report: LossReport, step: int, micro_batches: int) -> LossReport:
        """Apply or skip the step depending on the gradient, which is shared: all processes skip it or none does."""
        if torch.isfinite(gradient_norm(self.parameters)):
            self._update(step)
            self.balancing.update(report, micro_batches)
        else:
            self.skipped += 1
            self.balancing.skip()
            self._clear_gradients()
        return report

    def _stop(self, step: int, *, is_looked_at: bool) -> bool:
        """Stop if ``run.stop`` was called in any process; return whether the student must be saved."""
        run = self.run
        run.stop_reason = first_of_all(self.accelerator, run.stop_reason)
        if run.stop_reason is None or self.stopped_early:
            return False
        if not is_looked_at:
            self.accumulation.watch.settle()
            check_weights(step, self.parameters)
            self._check_unfrozen()
        if self.evaluation is not None and not self._evaluates(self.evaluation, step, saves=self.plan.is_save(step)):
            self._measure(self.evaluation, step)
        self.stopped_early = True
        self.note_stop()
        return True

    def _evaluates(self, evaluation: Evaluation, step: int, *, saves: bool) -> bool:
        return evaluation.is_due(step, self.plan.total_steps, saves=saves)

    def _evaluate(self, evaluation: Evaluation, step: int, saves: bool) -> bool:
        """Evaluate if it is due; return whether this is the best student so far, which must be saved."""
        if not self._evaluates(evaluation, step, saves=saves):
            return False
        return self._measure(evaluation, step)

    def _measure(self, evaluation: Evaluation, step: int) -> bool:
        """Evaluate; return whether this is the best student so far."""
        pair = self.accumulation.pair
        with busy("Evaluating"), called_alone(pair.student, self.accelerator):
            values = evaluation.measure(
                pair, self.accumulation.model_args, self.accelerator.device, watched=self._watched
            )
        named = {f"eval/{name}": value for name, value in values.items()}
        self.tracking.write(named, step)
        self.journal.write(named, step)
        self.display.losses(named, step)
        if self.actor is not None:
            self.actor.evaluated(self.run, values)
        if evaluation.best is None:
            return False
        value = on_main(self.accelerator, lambda: values[evaluation.best or ""])  # all save and stop together
        best = self.standing.take(value, step, evaluation.mode)
        if best:
            self.checkpoints.spare = step
        self.stopped_early = evaluation.patience is not None and self.standing.since >= evaluation.patience
        if self.stopped_early:
            self.note_stop()
        return best

    def note_stop(self) -> None:
        """Display why the run ends before its last step: the metric, its best value, and the checkpoint with that value."""
        standing, step, total, evaluation = self.standing, self.run.step, self.plan.total_steps, self.evaluation
        if step >= total:
            return
        if self.run.stop_reason is not None or evaluation is None:
            self.display.note(f"Stopped at step {step} of {total}: {printable(self.run.stop_reason or '')}")
            return
        best = "none"
        if standing.value is not None:
            best = f"{standing.value:.6g}, in {self.run.output_dir / f'step-{standing.step}'}"
        self.display.note(
            f"Stopped early at step {step} of {total}: {evaluation.best!r} did not improve in {standing.since} "
            f"evaluation{'' if standing.since == 1 else 's'}; best: {best}"
        )

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        return counted(batches, "Evaluating", total=length(batches))

    def _update(self, step: int) -> None:
        if self.max_grad_norm is not None:
            self.accelerator.unscale_gradients()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
            check_norm(step, whole(norm), self.accelerator)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            if self.updating is not None:
                self.updating.after(step, self.plan.total_steps)
            if self.scheduler is not None:
                self._change_rate(self.scheduler, step)
        self._clear_gradients()

    def _change_rate(self, scheduler: Any, step: int) -> None:
        """Step the learning-rate scheduler after optimizer step ``step``; warn once if the rate stays 0.

        Raises: ``RunError`` if the scheduler was built for fewer steps and does not support more.
        """
        total = self.plan.total_steps
        try:
            scheduler.step()
        except ValueError as error:
            raise RunError(
                f"the {type(scheduler).__name__} failed after step {step} of {total}: {error}. Build it for {total} "
                "optimizer steps"
            ) from error
        self.rates.see(self.run.optimizer, scheduler, step + 1, total)

    def _clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _log(self, step: int, report: LossReport) -> None:
        values = losses(self.accelerator, report)
        self.tracking.write(values, step)
        self.journal.write(values, step)
        self.display.losses(values, step)

    def _save(self, step: int) -> None:
        run = self.run
        self._write(step)
        if self.callback is not None:
            before = gradients_required(run.model)
            with busy("Running the callback"), called_alone(run.model, self.accelerator):
                self.callback(model=run.model, step=step)
            self._check_requirements(before, step)
            run.model.train()
            if run.teacher is not None:
                run.teacher.eval()  # it may contain some of the student's modules

    def save_as(self, step: int, position: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step that is done, with the position in the data that it had then."""
        self._clear_gradients()
        self.accumulation.watch.settle()
        check_weights(step, self.parameters)
        self._write(step, position)

    def _write(self, step: int, position: Mapping[str, Any] | None = None) -> None:
        run = self.run
        modules = {
            "student": gathered(run.model, keep=run.is_main),
            "objective": gathered(run.objective, keep=run.is_main),
            **({} if self.updating is None else {"teacher": self.updating.model}),
        }
        shared = {
            "identity": dict(self.identity),
            "standing": self.standing.to_data(),
            "requires_grad": self._changed_requirements(),
            "stop_reason": run.stop_reason if self.stopped_early else None,
            **self._learning(),
        }
        own: dict[str, Any] = {"position": self.windows.position() if position is None else position}
        if self.actor is not None:
            own["hooks"] = self.actor.state()
        if not run.is_main:
            own["buffers"] = buffers_to_save(run.objective)
        with busy(f"Writing the checkpoint of step {step}"):
            path = self.checkpoints.write(step, modules, shared, own, self.accelerator)
        if run.is_main:
            self.written.append(path)

    def _check_unfrozen(self) -> None:
        """Raise ``RunError`` if DDP leaves out gradients because their parameters were frozen when it was set up."""
        unfrozen = [name for name, value in self._changed_requirements().items() if value]
        if unfrozen and isinstance(self.accumulation.model, DistributedDataParallel):
            more = f" and {len(unfrozen) - 1} more were" if len(unfrozen) > 1 else " was"
            raise RunError(
                f"the student's {unfrozen[0]!r}{more} unfrozen during the run. DDP does not average gradients of "
                "parameters that were frozen at its start, so the processes train different weights. Set "
                "requires_grad=True before the run, or use FSDP2"
            )

    def _check_requirements(self, before: Mapping[str, bool], step: int) -> None:
        """Warn that the callback changed ``requires_grad``, which the checkpoint before it does not hold."""
        now = gradients_required(self.run.model)
        changed = [name for name, value in before.items() if now.get(name, value) != value]
        if changed and self.run.is_main and step < self.plan.total_steps:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            warnings.warn(
                f"the callback changed requires_grad of {changed[0]!r}{more} after the checkpoint of step {step} was written, "
                "so a run resumed from that checkpoint trains without the change. Change requires_grad in step_end of an "
                "observer, which runs before the checkpoint is written",
                stacklevel=2,
            )

    def _changed_requirements(self) -> dict[str, bool]:
        """Return ``requires_grad`` of the student's parameters by name, where it has changed since the start."""
        now = gradients_required(self.run.model)
        return {name: value for name, value in now.items() if value != self.required.get(name)}

    def _learning(self) -> dict[str, Any]:
        """Return the state of the optimizer, the learning-rate scheduler and the loss scaler."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": whole(self.run.optimizer.state_dict(), keep=self.run.is_main),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }


class Rescue:
    """Saves a run in one process whose external teacher fails, as it was before that step, so that no step is lost."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._note()

    @classmethod
    def of(cls, loop: Loop) -> Rescue | None:
        """Return one for a run with an external teacher that runs live in one process; the others cannot save alone."""
        lives = isinstance(loop.accumulation.teacher, CalledTeacher) and loop.run.num_processes == 1
        return cls(loop) if lives else None

    def _note(self) -> None:
        self._position = self._loop.windows.position()
        self._state = ForwardState(self._loop.accumulation.pair)

    @contextmanager
    def around_step(self) -> Iterator[None]:
        """Save the run if the teacher fails in the block, and add the checkpoint to the error."""
        loop, step = self._loop, self._loop.run.step
        try:
            yield
        except TeacherCallError as error:
            if step:
                self._state.restore()
                loop.save_as(step, self._position)
                error.message += (
                    f". The run is saved in {loop.run.output_dir / f'step-{step}'}: start the teacher again, then resume with "
                    "resume='auto' (--resume)"
                )
            raise
        self._note()
