"""A student, its teachers and an objective as one ``LightningModule``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from kdplug.config.distillation import DistillationConfig
from kdplug.distillers.custom_match import CustomMatch
from kdplug.engine.accumulation import Layout, Normalization, counts_of
from kdplug.engine.checkpoint.identity import check_identity, check_ranks
from kdplug.engine.forward_state import modes
from kdplug.engine.teacher import check_apart
from kdplug.engine.training_module import Adaptor, call, captured, split
from kdplug.errors import ConfigError, RunError
from kdplug.integrations.sides import Teachers, identity_of, make_objective, make_teachers
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.report import LossReport
from kdplug.objective.term import mark_pooled


class EqualCounts:
    """Holds that every term counts the same in all micro-batches of a step: only then is what Lightning does right."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, ...]] | None = None
        self._step = -1

    def check(self, report: LossReport, step: int) -> None:
        """Raises: ``RunError`` where a term counts other than in the step's first micro-batch. Waits for the device."""
        counts = {name: tuple(map(float, parts)) for name, parts in counts_of(report).items()}
        if step != self._step or self._first is None:
            self._first, self._step = counts, step
            return
        for name, parts in counts.items():
            if parts != self._first.get(name):
                raise RunError(
                    f"{name} is a mean over {_shown(parts)} items in this micro-batch and over "
                    f"{_shown(self._first.get(name, ()))} in the first one of the step. Lightning takes the mean of both means, "
                    "which is not that of the whole batch. normalization='micro_batch' accepts that; DistillationTrainer and "
                    "GeneralDistiller divide by the count of all"
                )


def _shown(parts: tuple[float, ...]) -> str:
    return " and ".join(f"{part:g}" for part in parts) or "no"


class LightningProcesses:
    """Lightning's processes, for adding counts up."""

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


class DistillationModule(LightningModule):
    """Trains ``student`` as the student of ``teacher`` under a Lightning ``Trainer``.

    * ``teacher`` is a model, or several as a list or by key. They are no part of this module: Lightning neither trains, wraps
      nor saves them, nor puts them in train mode.
    * ``optimizer`` makes what ``configure_optimizers`` returns of parameter groups: the student's, and one for each projection
      with its own options. ``torch.optim.AdamW`` will do, or a function that adds a learning-rate scheduler.
    * ``adaptor_T(batch, model_outputs)`` and ``adaptor_S`` return what the objective reads, as for ``GeneralDistiller``, and
      batches are divided and passed to the models as there.
    * ``custom_matches`` are ``kdplug.CustomMatch``; they go with one teacher.
    * ``normalization`` is ``"global"``: each term is divided once, by what it counts in the batches of all processes. Lightning
      hands the micro-batches of ``accumulate_grad_batches`` out one at a time and averages them, so that there a term which
      counts differently in them is an error. ``"micro_batch"`` takes means of means.
    * ``resume_changed`` lets ``fit(…, ckpt_path=…)`` go on though config, plugin versions, teacher or the student's shapes are others
      than in the run that wrote the checkpoint; otherwise that is an error, which lists what differs. Data are not compared.

    Widths that are ``auto`` are made by ``materialize(batch)``, before ``fit``. The loss and each term are logged as
    ``train_…``, ``val_…`` and ``test_…``.

    Raises: ``ConfigError``, ``EntryError`` or ``SettingError`` for what the config names and is not there.
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
                f"must be a function of parameter groups, got {type(optimizer).__name__}. Write "
                "functools.partial(torch.optim.AdamW, lr=1e-4), say",
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
        self._hooks = ExitStack()
        self._capture: Capture | None = None
        self._equal = EqualCounts()
        self._agreed: set[Layout] = set()
        self._total_steps: int | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student."""
        return self.student(*args, **kwargs)

    def materialize(self, batch: Any) -> None:
        """Make the projections whose widths are ``auto``, and count the layers for layer maps, from one batch.

        Both models run once on it, in eval mode and without gradient.
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
            student = captured(self._capture, self.student, self._adaptor, parts.student, {})
            self.objective.materialize(student=student, teacher=teacher)
        self.objective.to(device)

    def setup(self, stage: str) -> None:
        """Freeze the teachers, put them in eval mode, and hook what the matches read, until ``teardown``.

        Raises: ``RunError`` where widths are not known yet, training would change a teacher, or the processes of a fit do not have
        the same config, plugins, teachers and student.
        """
        self._hooks.close()
        if stage == "fit" and self.objective.needs_materialize:
            raise RunError(
                "a width is 'auto', or a layer map waits for the number of layers. Call module.materialize(batch) with a "
                "batch before trainer.fit"
            )
        if stage == "fit":
            check_apart(self._teachers.model, self.student, self.objective)
            config = self.objective.config
            self._identity = identity_of(config, self.student, self._adaptor, self.objective, self._teachers)
            if torch.distributed.is_initialized():
                self._identity = check_ranks(self._identity, self.trainer.world_size)
        self._total_steps, self._equal, self._agreed = None, EqualCounts(), set()
        self._hook(self._hooks)

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Give the teachers their modes and their gradients back, and take the hooks away."""
        self._hooks.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the run is, to compare it with one that goes on from here."""
        if self._identity is not None:
            checkpoint[_IDENTITY] = self._identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises: ``RunError`` where a fit goes on from a checkpoint of another run, unless ``resume_changed``."""
        resumes = self._identity is not None and self.trainer.state.fn == "fit"
        if resumes and _IDENTITY in checkpoint and not self._resume_changed:
            check_identity(checkpoint[_IDENTITY], self._identity, "the checkpoint")

    def on_fit_start(self) -> None:
        """Put the teachers where the student is."""
        self._teachers.to(self.device)

    def on_validation_start(self) -> None:
        """Put the teachers where the student is."""
        self._teachers.to(self.device)

    def on_test_start(self) -> None:
        """Put the teachers where the student is."""
        self._teachers.to(self.device)

    def on_train_start(self) -> None:
        """Raises: ``RunError`` where Lightning would divide the last step of an epoch by micro-batches that it lacks."""
        size, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        several = size > 1 or self.trainer.world_size > 1
        mark_pooled(self.objective, is_pooled=several and self._over == "global")
        if self._over == "global" and batches != float("inf") and batches % size:
            raise RunError(
                f"an epoch has {batches} micro-batches, so that its last step has {int(batches % size)}, and Lightning divides by "
                f"accumulate_grad_batches={size} all the same. Set limit_train_batches={int(batches - batches % size)}, or "
                "normalization='micro_batch' to have it so"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The objective's loss, to be averaged over processes and micro-batches."""
        report = self._report(batch, batch_idx)
        if self._over == "micro_batch":
            loss = report.total
        else:
            if self.trainer.accumulate_grad_batches > 1:
                self._equal.check(report, self.trainer.global_step)
            loss = self._pooled(report)
        self._log("train", report, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The objective's loss."""
        report = self._report(batch, batch_idx)
        self._log("val", report, report.total, sync_dist=True)
        return report.total

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The objective's loss."""
        report = self._report(batch, batch_idx)
        self._log("test", report, report.total, sync_dist=True)
        return report.total

    def predict_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ARG002
        """What the student makes of the batch."""
        return call(self.student, split(batch).student, {})

    def configure_optimizers(self) -> Any:
        """What the factory makes of the student's parameters and of the objective's groups."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return self._make_optimizer([{"params": trained}, *self.objective.param_groups()])

    def _hook(self, stack: ExitStack) -> None:
        stack.enter_context(modes(evaluating=self._teachers.model))
        stack.enter_context(self._teachers.frozen(self.student))
        stack.enter_context(self._teachers.hooked(self.objective))
        self.objective.connect(student=self.student)
        self._capture = Capture(self.student, self.objective.paths("student"), "student")
        stack.enter_context(self._capture.hooked())

    def _report(self, batch: Any, place: int) -> LossReport:
        parts = split(batch)
        teacher = self._teachers(parts.teacher, {}, parts.cache)
        student = captured(self._capture, self.student, self._adaptor, parts.student, {})
        step, total = self._steps()
        report: LossReport = self.objective(
            student=student,
            teacher=teacher,
            progress=min(step / total, 1.0) if total else 0.0,
            step=min(step, total),
            total_steps=total,
            micro_batch=place * self.trainer.world_size + self.trainer.global_rank,
        )
        return report

    def _steps(self) -> tuple[int, int]:
        """The optimizer steps taken, and those of the whole run, 0 where nothing is trained."""
        if self.trainer.state.fn != "fit":
            return 0, 0
        if self._total_steps is None:
            found = self.trainer.estimated_stepping_batches
            if found == float("inf"):
                raise RunError(
                    "Lightning does not know how many steps the run has, and schedules need it. Set max_steps"
                )
            self._total_steps = int(found)
        return self.trainer.global_step, self._total_steps

    def _pooled(self, report: LossReport) -> Tensor:
        """The loss by the counts of all processes' batches, such that Lightning's mean over processes is right."""
        if self.trainer.world_size == 1:
            return report.total
        return Normalization.pooled([counts_of(report)], LightningProcesses(self), self._agreed).loss(report)

    def _log(self, stage: str, report: LossReport, loss: Tensor, *, sync_dist: bool = False) -> None:
        self.log(f"{stage}_loss", loss.detach(), prog_bar=True, sync_dist=sync_dist)
        values = {f"{stage}_{name}": term.value.detach() for name, term in report.terms.items() if term.weight}
        self.log_dict(values, sync_dist=sync_dist)
