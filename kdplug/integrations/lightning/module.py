"""A student, its teachers and an objective as one ``LightningModule``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from kdplug.config.distillation import DistillationConfig
from kdplug.distillers.custom_match import CustomMatch
from kdplug.engine.checkpoint.identity import check_identity, check_ranks
from kdplug.engine.checkpoint.weights import buffers_to_save, load_buffers
from kdplug.engine.forward_state import modes
from kdplug.engine.normalization import Normalization, TermLayout, counts_of
from kdplug.engine.observe.activity import busy
from kdplug.engine.optimizer import GradientWatch, RateWatch, check_constant_rate
from kdplug.engine.parallel.process import equalize_buffers, keep_buffers_apart
from kdplug.engine.teacher import check_apart
from kdplug.engine.training_module import Adaptor, call, split, student_outputs
from kdplug.errors import ConfigError, RunError
from kdplug.integrations.sides import Teachers, identity_of, make_objective, make_teachers
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.report import LossReport
from kdplug.objective.term import mark_pooled


class EqualCounts:
    """Checks that a term's count is the same in all micro-batches of a step, as Lightning's averaging requires."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, ...]] | None = None
        self._step = -1

    def check(self, report: LossReport, step: int) -> None:
        """Raise ``RunError`` if a count differs from the step's first micro-batch. Synchronizes with the device."""
        counts = {name: tuple(map(float, parts)) for name, parts in counts_of(report).items()}
        if step != self._step or self._first is None:
            self._first, self._step = counts, step
            return
        for name, parts in counts.items():
            if parts != self._first.get(name):
                raise RunError(
                    f"the number of items that {name} averages over is {_shown(parts)} in this micro-batch and "
                    f"{_shown(self._first.get(name, ()))} in the first one of the step. Lightning averages the means of the "
                    "micro-batches, which differs from the mean over all items. Set normalization='micro_batch' to accept "
                    "this difference, or use DistillationTrainer or GeneralDistiller, which divide by the total count"
                )


def _shown(parts: tuple[float, ...]) -> str:
    return " and ".join(f"{part:g}" for part in parts) or "0"


class LightningProcesses:
    """Lightning's processes, for summing counts."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module

    @property
    def device(self) -> torch.device:
        return self._module.device

    @property
    def num_processes(self) -> int:
        return self._module.trainer.world_size

    def reduce(self, tensor: Any, reduction: str) -> Any:
        return self._module.trainer.strategy.reduce(tensor, reduce_op=reduction)


_IDENTITY = "kdplug_identity"
_BUFFERS = "kdplug_buffers"


class DistillationModule(LightningModule):
    """Trains ``student`` as the student of ``teacher`` under a Lightning ``Trainer``.

    * ``teacher`` is a model, or several as a list or by key. They are not submodules: Lightning does not train, wrap or
      save them, nor set them to train mode.
    * ``optimizer`` takes parameter groups (the student's, and one per projection with its own options) and returns the
      result of ``configure_optimizers``. Pass ``functools.partial(torch.optim.AdamW, lr=…)``, or a function that also
      adds a learning-rate scheduler.
    * ``adaptor_T(batch, model_outputs)`` and ``adaptor_S`` return what the objective reads, as for
      ``GeneralDistiller``. Batches are split and passed to the models as in ``GeneralDistiller``.
    * ``custom_matches`` are ``kdplug.CustomMatch``; they need exactly one teacher.
    * ``normalization`` is ``"global"``: each term is divided once, by the number of its items in the batches of all
      processes.
      Lightning passes the micro-batches of ``accumulate_grad_batches`` one at a time and averages them, so a term whose
      count differs between them raises an error. ``"micro_batch"`` averages the means.
    * ``resume_changed`` lets ``fit(…, ckpt_path=…)`` resume even if the config, a plugin version, the teacher or the
      student's shapes changed since the checkpoint; otherwise the error lists the differences. Data are not compared.

    A loss that requests ``example_ids`` gets the batch key of that name, one integer per example of the training data; it
    is left out of validation and test.

    ``materialize(batch)`` builds projections with ``auto`` widths; call it before ``fit``. The loss and each term are
    logged as ``train_…``, ``val_…`` and ``test_…``.

    Raises: ``ConfigError``, ``EntryError`` or ``SettingError`` if the config contains a name that does not exist.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teachers,
        distill_config: DistillationConfig,
        optimizer: Callable[[list[dict[str, Any]]], Any],
        *,
        adaptor_T: Any = None,
        adaptor_S: Adaptor | None = None,
        custom_matches: Iterable[CustomMatch] = (),
        normalization: Literal["global", "micro_batch"] = "global",
        resume_changed: bool = False,
    ) -> None:
        super().__init__()
        if normalization not in ("global", "micro_batch"):
            raise ConfigError(f"must be 'global' or 'micro_batch', got {normalization!r}", field="normalization")
        if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(
                f"must be a function of parameter groups, got {type(optimizer).__name__}. For example, pass "
                "functools.partial(torch.optim.AdamW, lr=1e-4)",
                field="optimizer",
            )
        self._teachers = make_teachers(teacher, adaptor_T)
        self.student = student
        self.objective = make_objective(distill_config, self._teachers, student, custom_matches)
        check_apart(self._teachers.model, student, self.objective)
        self._adaptor = adaptor_S
        self._make_optimizer = optimizer
        self._over = normalization
        self._resume_changed = resume_changed
        self._identity: dict[str, Any] | None = None
        self._own_buffers: dict[str, Tensor] = {}
        self._hooks = ExitStack()
        self._capture: Capture | None = None
        self._equal = EqualCounts()
        self._agreed: set[TermLayout] = set()
        self._total_steps: int | None = None
        self._rates = RateWatch()
        self._gradients: GradientWatch | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the student."""
        return self.student(*args, **kwargs)

    def materialize(self, batch: Any, *, num_examples: int | None = None) -> None:
        """Build projections with ``auto`` widths, and count the layers for layer maps, from one batch.

        ``num_examples`` is the number of examples in the training data, for losses that take it.

        Runs both models once, in eval mode and without gradient.
        """
        device = next(self.student.parameters()).device
        parts = split(batch)
        with ExitStack() as stack:
            self._hook(stack)
            stack.enter_context(modes(evaluating=self.student))
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(torch.no_grad())
            self._teachers.to(device)
            teacher = self._teachers(parts.teacher, {}, parts.cache)
            student = student_outputs(self._capture, self.student, self._adaptor, self.objective, parts.student, {})
            self.objective.materialize(student=student, teacher=teacher, num_examples=num_examples)
        self.objective.to(device)

    def setup(self, stage: str) -> None:
        """Freeze the teachers, set them to eval mode, and install capture hooks for the matches, until ``teardown``.

        Raises: ``RunError`` if widths are not known yet, training would change a teacher, or config, plugins, teachers
        or student differ between the processes of a fit.
        """
        self._hooks.close()
        if stage == "fit" and self.objective.needs_materialize:
            raise RunError(
                "a width is 'auto', or a layer map needs the number of layers. Call module.materialize(batch) before "
                "trainer.fit"
            )
        if stage == "fit":
            check_apart(self._teachers.model, self.student, self.objective)
            config = self.objective.config
            shown = self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
            with busy("Hashing the teacher", shown=shown):
                self._identity = identity_of(config, self.student, self._adaptor, self.objective, self._teachers)
            if torch.distributed.is_initialized():
                self._identity = check_ranks(self._identity, self.trainer.world_size)
        if stage == "fit" and self.trainer.world_size > 1:
            keep_buffers_apart(self, self.objective)
        self._total_steps, self._equal, self._agreed = None, EqualCounts(), set()
        self._hook(self._hooks)

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Restore the teachers' modes and ``requires_grad``, and remove the hooks."""
        self._hooks.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the run's identity, to compare it when a run resumes from this checkpoint, and each process's buffers."""
        if self._identity is not None:
            checkpoint[_IDENTITY] = self._identity
        if torch.distributed.is_initialized() and self.trainer.world_size > 1:
            every: list[Any] = [None] * self.trainer.world_size
            own = {name: buffer.cpu() for name, buffer in buffers_to_save(self.objective).items()}
            torch.distributed.all_gather_object(every, own)
            checkpoint[_BUFFERS] = every

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ``RunError`` if a fit resumes from a checkpoint of a different run, unless ``resume_changed``."""
        resumes = self._identity is not None and self.trainer.state.fn == "fit"
        if resumes and _IDENTITY in checkpoint and not self._resume_changed:
            check_identity(checkpoint[_IDENTITY], self._identity, "the checkpoint")
        every = checkpoint.get(_BUFFERS, [])
        self._own_buffers = every[self.trainer.global_rank] if resumes and len(every) > self.trainer.global_rank else {}

    def on_fit_start(self) -> None:
        """Move the teachers to the student's device; all processes start with equal buffers, or those of a checkpoint."""
        self._teachers.to(self.device)
        if self.trainer.world_size > 1:
            equalize_buffers(self.objective)
        load_buffers(self.objective, self._own_buffers)
        self._own_buffers = {}

    def on_validation_start(self) -> None:
        """Move the teachers to the student's device."""
        self._teachers.to(self.device)

    def on_test_start(self) -> None:
        """Move the teachers to the student's device."""
        self._teachers.to(self.device)

    def on_train_start(self) -> None:
        """Raise ``RunError`` if an epoch's last step has fewer micro-batches than Lightning divides by."""
        size, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        several = size > 1 or self.trainer.world_size > 1
        mark_pooled(self.objective, is_pooled=several and self._over == "global")
        if self._over == "global" and batches != float("inf") and batches % size:
            rest = int(batches % size)
            way = f"limit_train_batches={int(batches) - rest}"
            if batches < size:  # Lightning skips training if limit_train_batches is 0
                way = f"accumulate_grad_batches to at most {rest}"
            raise RunError(
                f"the last step of each epoch has {rest} of {size} micro-batches, but Lightning divides by "
                f"accumulate_grad_batches={size}. Set {way}, or normalization='micro_batch' to accept that"
            )

        self._watch()

    def _watch(self) -> None:
        """Start to watch learning rate and gradients, which strategies that shard the model hold elsewhere."""
        self._rates, self._gradients = RateWatch(), None
        if self.trainer.global_rank or not self.trainer.optimizers:
            return
        optimizer = self.trainer.optimizers[0]
        if not self.trainer.lr_scheduler_configs:
            check_constant_rate(optimizer)
        if type(self.trainer.strategy) in (SingleDeviceStrategy, DDPStrategy):
            self._gradients = GradientWatch(optimizer, self.student.named_parameters())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn about parameters of the student without a gradient, and about a learning rate that stays 0."""
        step, total = self._steps()
        if self.trainer.lr_scheduler_configs and not self.trainer.global_rank:
            self._rates.see(optimizer, self.trainer.lr_scheduler_configs[0].scheduler, step + 1, total)
        if self._gradients is not None:
            self._gradients.see(ends=step + 1 == total)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss; Lightning averages it over processes and micro-batches."""
        report = self._report(batch, batch_idx, trains=True)
        if self._over == "micro_batch":
            loss = report.total
        else:
            if self.trainer.accumulate_grad_batches > 1:
                self._equal.check(report, self.trainer.global_step)
            loss = self._pooled(report)
        self._log("train", report, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss and log it with each term."""
        report = self._report(batch, batch_idx)
        self._log("val", report, report.total, sync_dist=True)
        return report.total

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss and log it with each term."""
        report = self._report(batch, batch_idx)
        self._log("test", report, report.total, sync_dist=True)
        return report.total

    def predict_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        """Return the student's outputs for the batch."""
        return call(self.student, split(batch).student, {})

    def configure_optimizers(self) -> Any:
        """Call the optimizer factory with the student's parameters and the objective's groups."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return self._make_optimizer([{"params": trained}, *self.objective.param_groups()])

    def _hook(self, stack: ExitStack) -> None:
        stack.enter_context(modes(evaluating=self._teachers.model))
        stack.enter_context(self._teachers.frozen(self.student))
        stack.enter_context(self._teachers.hooked(self.objective))
        self.objective.connect(student=self.student)
        self._capture = Capture(self.student, self.objective.paths("student"), "student")
        stack.enter_context(self._capture.hooked())

    def _report(self, batch: Any, place: int, *, trains: bool = False) -> LossReport:
        parts = split(batch)
        teacher = self._teachers(parts.teacher, {}, parts.cache)
        student = student_outputs(self._capture, self.student, self._adaptor, self.objective, parts.student, {})
        step, total = self._steps()
        report: LossReport = self.objective(
            student=student,
            teacher=teacher,
            progress=min(step / total, 1.0) if total else 0.0,
            step=min(step, total),
            total_steps=total,
            epoch=self.trainer.current_epoch,
            example_ids=parts.ids if trains else None,  # other data have no place in the training data
            micro_batch=place * self.trainer.world_size + self.trainer.global_rank,
        )
        return report

    def _steps(self) -> tuple[int, int]:
        """Return the completed and total optimizer steps; 0 outside ``fit``."""
        if self.trainer.state.fn != "fit":
            return 0, 0
        if self._total_steps is None:
            found = self.trainer.estimated_stepping_batches
            if found == float("inf"):
                raise RunError(
                    "the number of steps is unknown to Lightning, but schedules depend on it. Pass max_steps to the "
                    "Trainer"
                )
            self._total_steps = int(found)
        return self.trainer.global_step, self._total_steps

    def _pooled(self, report: LossReport) -> Tensor:
        """Return the loss divided by the counts of all processes, scaled for Lightning's mean over processes."""
        if self.trainer.world_size == 1:
            return report.total
        return Normalization.pooled([counts_of(report)], LightningProcesses(self), self._agreed).loss(report)

    def _log(self, stage: str, report: LossReport, loss: Tensor, *, sync_dist: bool = False) -> None:
        self.log(f"{stage}_loss", loss.detach(), prog_bar=True, sync_dist=sync_dist)
        values = {f"{stage}_{name}": term.value.detach() for name, term in report.terms.items() if term.weight}
        self.log_dict(values, sync_dist=sync_dist)
