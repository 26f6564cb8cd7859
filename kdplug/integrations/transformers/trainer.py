"""A transformers ``Trainer`` with a distillation loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from kdplug.config.distillation import DistillationConfig
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.vocabulary import EXAMPLE_IDS
from kdplug.distillers.custom_match import CustomMatch
from kdplug.engine.checkpoint.fingerprint import code_fingerprint, dataset_fingerprint
from kdplug.engine.checkpoint.identity import check_ranks
from kdplug.engine.forward_state import modes
from kdplug.engine.normalization import TermLayout
from kdplug.engine.observe.activity import busy
from kdplug.engine.parallel.process import equalize_buffers, keep_buffers_apart
from kdplug.engine.teacher import check_apart
from kdplug.engine.training_module import Adaptor
from kdplug.errors import ConfigError
from kdplug.integrations.sides import Teachers, identity_of, make_objective, make_teachers
from kdplug.integrations.transformers.accumulation import StepWatch, TermLog, Window, as_sums, count_items
from kdplug.integrations.transformers.checkpoint import (
    check_resumed,
    check_undamaged,
    divide,
    read_objective,
    read_own_buffers,
    write_objective,
    write_own_buffers,
)
from kdplug.integrations.transformers.inputs import Columns, Features, adapt, first_batch
from kdplug.integrations.transformers.link import ForwardRequest, Link, OwnLoss
from kdplug.integrations.transformers.preparation import add_objective, check
from kdplug.integrations.transformers.teaching import Teaching
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport
from kdplug.objective.term import mark_pooled


class DistillationTrainer(Trainer):
    """A ``transformers.Trainer`` that trains ``model`` as the student of ``teacher``.

    It takes the arguments of ``Trainer``, and by keyword:

    * ``teacher`` is a model, or several as a list or by key. Teachers are frozen, in eval mode, on the Trainer's
      device, and never wrapped, saved or trained.
    * ``distill_config`` defines the loss. Its hard label loss is the student's own loss, or that of
      ``label_smoothing_factor`` or ``compute_loss_func`` if set.
    * ``adaptor_T(batch, model_outputs)`` and ``adaptor_S`` return what the objective reads. The default reads a
      transformers output, with ``attention_mask`` as the mask of features and of per-token logits.
    * ``custom_matches`` are ``kdplug.CustomMatch``; they need exactly one teacher.
    * ``normalization`` is ``"global"``: each term is divided once, by the number of its items in all micro-batches and
      processes of a step; or ``"micro_batch"``: the mean of the micro-batches' means, which saves a forward pass if masks differ.
    * ``resume_changed`` lets ``resume_from_checkpoint`` resume even if the config, a plugin version, the teacher, the
      data or the student's shapes changed since the checkpoint; otherwise the error lists the differences.

    The models return hidden states or attention if the config reads them by index. A column that only a teacher takes
    is passed to that teacher; a mapping under ``teacher`` in a batch goes to the teachers only. Projections and losses
    with parameters belong to ``objective``: they are trained, clipped and wrapped with the student, saved next to it
    (``objective.safetensors``), and loaded by ``resume_from_checkpoint`` and ``load_best_model_at_end``.

    Raises: ``ConfigError``, ``EntryError`` or ``SettingError`` if the config contains a name that does not exist;
    ``RunError`` if a run cannot start or resume, or its processes were started with different settings.
    """

    objective: Objective

    def __init__(
        self,
        *args: Any,
        teacher: Teachers,
        distill_config: DistillationConfig,
        adaptor_T: Any = None,
        adaptor_S: Adaptor | None = None,
        custom_matches: Iterable[CustomMatch] = (),
        normalization: Literal["global", "micro_batch"] = "global",
        resume_changed: bool = False,
        **kwargs: Any,
    ) -> None:
        if normalization not in ("global", "micro_batch"):
            raise ConfigError(f"must be 'global' or 'micro_batch', got {normalization!r}", field="normalization")
        self._teachers = make_teachers(teacher, adaptor_T)
        super().__init__(*args, **kwargs)
        self.distill_config = distill_config
        self._adaptor = adaptor_S
        self._custom_matches = tuple(custom_matches)
        self._over: Literal["global", "micro_batch"] = normalization
        self._own_loss = OwnLoss(self.compute_loss_func, self.label_smoother)
        # The objective computes the whole loss, and the Trainer must divide it by the number of micro-batches.
        self.compute_loss_func, self.model_accepts_loss_kwargs = None, False
        self._resume_changed = resume_changed
        self._identity: dict[str, Any] | None = None
        self._window: Window | None = None
        self._counts_are_data = self._is_open = False
        self._logged, self._evaluated = TermLog(), TermLog()
        self._step_watch = StepWatch()
        self.add_callback(self._step_watch)
        self._link_student()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        """Return the objective's loss; with ``return_outputs``, also the student's outputs."""
        with self._open():
            if model.training:
                loss, outputs = self._train_on(model, inputs)
            else:
                (items,) = self._count_items([inputs])
                outputs, report, _ = self._forward(model, inputs, items)
                self._evaluated.add(report)
                loss = report.total.detach()
        return (loss, self._features.without(outputs)) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the Trainer's optimizer, with the objective's parameter groups added."""
        with self._link.apart():
            optimizer = super().create_optimizer(model)
        add_objective(self, self.objective, optimizer)
        return optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return and store the micro-batches of a step, because each term is divided by the number of its items in all."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._window = self._new_window(batches)
        return batches, items

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Predict as ``Trainer`` does; without labels only the student runs, and there is no loss."""
        if not (all(inputs.get(name) is not None for name in self.label_names) and self.label_names):
            inputs = self._columns.student(inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as ``Trainer`` does, and add the mean of each term to the metrics."""
        self._ready()
        self._evaluated = TermLog()
        with self._open():
            output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        terms = self._evaluated.means(self.accelerator)
        metrics = {**(output.metrics or {}), **{f"{prefix}_{name}": value for name, value in terms.items()}}
        return output._replace(metrics=metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as ``Trainer`` does, and add the unweighted mean of each term to the training loss."""
        if "loss" in logs:
            logs = {**logs, **self._logged.means(self.accelerator)}
        super().log(logs, start_time)

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: Any = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        check(self, self.objective)
        self._ready()
        check_apart(self._teachers.model, self._student, self.objective)
        several = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        mark_pooled(self.objective, is_pooled=several and self._over == "global")
        self._identity = self._identity or self._identified()
        self._logged, self._counts_are_data = TermLog(), False
        self._agreed: set[TermLayout] = set()
        self._step_watch.begin(self._student, is_sharded=self._is_sharded)
        try:
            with self._open():
                self._keep_buffers(resume_from_checkpoint)
                return super()._inner_training_loop(
                    batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval
                )
        finally:
            self._window = self._identity = None

    def _keep_buffers(self, resumed: str | None) -> None:
        """Leave each process its own buffers of the objective, those of the checkpoint ``resumed`` if there is one."""
        if self.args.world_size > 1 and not self._is_sharded:
            keep_buffers_apart(self._student, self.objective)
            equalize_buffers(self.objective)
            if resumed:
                read_own_buffers(Path(resumed), self.objective, self.args.process_index)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # the only step of a checkpoint that every process runs
        if self.args.process_index and not self._is_sharded:
            write_own_buffers(Path(output_dir), self.objective, self.args.process_index)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: Any = self._signature_columns
        known += sorted(self._columns.of_teachers.union({EXAMPLE_IDS}).difference(known))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        identity = self._identity or self._identified()
        check_resumed(Path(resume_from_checkpoint), identity, changed_is_meant=self._resume_changed)
        self._identity = identity
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_objective(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        check_undamaged(Path(str(self.state.best_model_checkpoint)))
        with nullcontext() if self._is_sharded else self._link.apart():
            super()._load_best_model()
        self._load_objective(Path(str(self.state.best_model_checkpoint)))

    def _load_objective(self, folder: Path) -> None:
        """Load the objective's file; FSDP and DeepSpeed store it with the student instead."""
        if not self._is_sharded:
            self._ready()
            read_objective(self.objective, folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        objective = self.objective.state_dict()
        if state_dict is not None and self._is_sharded:
            state_dict, objective = divide(state_dict)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            write_objective(folder, objective, self.objective.config, self._identity)

    def _identified(self) -> dict[str, Any]:
        """Return the identity of the run that is about to start. Collective: every process must call it.

        Raises: ``RunError`` if the processes differ.
        """
        data: Any = self.train_dataset
        loader: DataLoader[Any] | None = None
        if data is not None and self.args.dataloader_num_workers:
            loader = DataLoader(data, num_workers=1)
        shown = not self.args.disable_tqdm and self.is_world_process_zero()
        with busy("Hashing the data and the teacher", shown=shown):
            own = {
                **identity_of(self.distill_config, self._student, self._adaptor, self.objective, self._teachers),
                "data": {**dataset_fingerprint(data, loader), "collate_fn": code_fingerprint(self.data_collator)},
            }
        return check_ranks(own, self.accelerator.num_processes)

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def _student(self) -> nn.Module:
        student: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return student

    def _link_student(self) -> None:
        """Build the objective for the current student; ``model_init`` may have built a new one."""
        student = self._student
        self.objective = make_objective(self.distill_config, self._teachers, student, self._custom_matches)
        check_apart(self._teachers.model, student, self.objective)
        self.objective.to(next(student.parameters()).device)
        self._link = Link(student, self.objective)
        models = {key: one.model for key, one in self._teachers.teachers.items()}
        self._columns = Columns(student, models, self.label_names)
        self._features = Features(student, self.distill_config, "student")
        self._teaching = Teaching(self._teachers, self.distill_config, self._columns)

    def _ready(self) -> None:
        """Rebuild the objective if the student changed, and materialize its widths and layers."""
        if self._link.student is not self._student:
            self._link_student()
        if self.objective.needs_materialize and not self._is_open:
            student = self._link.student
            batch = first_batch(self, next(student.parameters()).device)
            if batch is not None:
                self._materialize(batch)

    def _materialize(self, batch: dict[str, Any]) -> None:
        student = self._link.student
        with self._open(), modes(evaluating=student), torch.no_grad(), torch.random.fork_rng():
            teacher = self._teaching.ask(self._prepare_inputs(batch), self.accelerator.autocast)
            inputs = {**self._columns.student(batch), **self._features.arguments}
            read = self._link.read(inputs, lambda outputs: self._adapted(batch, outputs))
            count = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
            self.objective.materialize(student=read, teacher=teacher, num_examples=count)

    def _adapted(self, batch: dict[str, Any], outputs: Any) -> Any:
        """Return the student's outputs as the objective reads them."""
        if self._adaptor is not None:
            return self._adaptor(batch, outputs)
        return adapt(batch, outputs, shifted=self._own_loss.shifts(self._student))

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Link the objective to the student and prepare the teachers for the block."""
        if self._is_open:
            yield
            return
        self._is_open = True
        try:
            with (
                self._link.joined(is_sharded=self._is_sharded),
                self._teaching.begun(self.objective, self._student, self.args.device),
            ):
                yield
        finally:
            self._is_open = False

    def _new_window(self, batches: list[Any]) -> Window:
        items = self._count_items(batches)
        return Window(batches, items, self.accelerator, self._over, self._counts_are_data, self._agreed)

    def _count_items(self, batches: list[Any]) -> list[int | None]:
        return count_items(batches, shifted=self._own_loss.shifts(self._student))

    def _train_on(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        window = self._window or self._new_window([inputs])

        def forward(batch: Any, place: int, teacher: Any) -> tuple[Any, LossReport, Any]:
            return self._forward(model, batch, window.items[place], teacher, place)

        outputs, report, normalization = window.next(model, inputs, forward, self._prepare_inputs)
        self._counts_are_data = window.counts_are_data
        self._logged.add_share(report, normalization, len(window))
        # Undo the Trainer's division by the number of micro-batches; the loss is normalized already.
        return window.loss(report, normalization) * len(window), outputs

    def _forward(
        self, model: nn.Module, batch: dict[str, Any], items: int | None, teacher: Any = None, place: int = 0
    ) -> tuple[Any, LossReport, Any]:
        """Return the student's outputs, the loss report and the teachers' outputs for micro-batch ``place``."""
        if teacher is None:
            teacher = self._teaching.ask(batch, self.accelerator.autocast)
        own = self._own_loss.of(self._student, batch, items) if self.objective.hard_label_loss is not None else None

        def read(outputs: Any) -> Outputs:
            found = Outputs.read(self._adapted(batch, outputs), "student")
            if own is not None:
                found = replace(found, losses=(own(outputs),))
            if found.losses is None:
                return found
            return replace(
                found, losses=as_sums(found.losses, items if own is not None or self._adaptor is None else None)
            )

        total = max(self.state.max_steps, 0)
        step = min(self.state.global_step, total)
        micro_batch = place * self.accelerator.num_processes + self.accelerator.process_index
        progress, epoch = step / total if total else 0.0, self._step_watch.epoch
        ids = batch.get(EXAMPLE_IDS) if model.training else None  # other data have no place in the training data
        request = ForwardRequest(read, teacher, progress, step, total, epoch, ids, micro_batch)
        given = self._columns.student(batch) if own is None else self._own_loss.unlabelled(self._columns.student(batch))
        outputs, report = self._link.ask(model, {**given, **self._features.arguments}, request)
        return outputs, report, teacher
