"""Student and objective as one module for wrapping, synchronization and clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from kdplug.contracts.outputs import Tagged
from kdplug.contracts.tree import map_leaves
from kdplug.contracts.vocabulary import EXAMPLE_IDS
from kdplug.engine.model_inputs import forward_of, is_sequence, with_labels
from kdplug.errors import KdplugError
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.objective import without_labels
from kdplug.objective.report import LossReport

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective
    from kdplug.objective.task_objective import TaskObjective


_SEQUENCES = (tuple, list)
"""Common batch types, compared by exact type: much faster than ``isinstance``."""


class Parts(NamedTuple):
    """The part of a batch for each side; ``cache``, if the batch has one, replaces the teacher's outputs.

    ``epoch`` is that of the task's own data, if there are several tasks. ``ids`` are the examples' places in the data.
    """

    teacher: Any
    student: Any
    cache: Any = None
    epoch: int | None = None
    ids: Any = None


def split(batch: Any) -> Parts:
    """Split ``{"teacher": …, "student": …}`` batches; any other batch goes to both sides whole.

    A third key ``teacher_cache`` holds the teacher's outputs. A key ``example_ids``, of the batch or the student's part,
    holds the examples' ids. Both parts of a tagged batch are tagged.
    """
    if type(batch) in _SEQUENCES:
        return Parts(batch, batch)
    if isinstance(batch, Tagged):
        parts = split(batch.value)
        teacher, student = Tagged(batch.task, parts.teacher), Tagged(batch.task, parts.student)
        return parts._replace(teacher=teacher, student=student, epoch=batch.epoch)
    if not isinstance(batch, Mapping):
        return Parts(batch, batch)
    ids = batch.get(EXAMPLE_IDS)
    if "teacher" not in batch or "student" not in batch:
        return Parts(batch, batch, ids=ids)
    student = batch["student"]
    if ids is None and isinstance(student, Mapping):
        ids = student.get(EXAMPLE_IDS)
    return Parts(batch["teacher"], student, batch.get("teacher_cache"), ids=ids)


def call(model: Callable[..., Any], batch: Any, model_args: Mapping[str, Any]) -> Any:
    """Call ``model`` with ``batch``: a mapping by keyword, a list or tuple by position, anything else as one argument.

    Only what ``forward`` takes is passed; the rest are labels, or logged once. The key ``extras`` is for adaptors only. A ``PackedSequence`` is one argument,
    although it is a tuple. Tags are removed before the call.

    Raises: ``RunError`` if the signature of ``forward`` does not determine which items are its inputs.
    """
    if type(batch) in _SEQUENCES:
        return model(*forward_of(model).by_position(batch, model_args), **model_args)
    if isinstance(batch, Tagged):
        batch = batch.value
    if isinstance(batch, Mapping):
        return model(**forward_of(model).by_keyword(batch, model_args), **model_args)
    if is_sequence(batch):
        return model(*forward_of(model).by_position(batch, model_args), **model_args)
    return model(batch, **model_args)


def to_device(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor in it on ``device``; containers keep their types.

    Objects with a ``to`` method move themselves: tensors, ``PackedSequence``, transformers' ``BatchEncoding``. Named
    tuples, mappings (``ModelOutput``, ``defaultdict``, …) and dataclasses keep their types; other objects are returned
    unchanged.
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(device, non_blocking=True)
        return leaf.to(device) if _moves_itself(leaf) else leaf

    return map_leaves(move, value, _moves_itself)


def _moves_itself(value: Any) -> bool:
    return callable(getattr(value, "to", None)) and not isinstance(value, (type, torch.nn.Module))


_REUSED = (list, dict)
"""Containers that an adaptor may fill again for the next batch."""

Adaptor = Callable[[Any, Any], Any]
"""``adaptor(batch, model_outputs)`` returns the outputs that the objective reads."""


Rearrange = Callable[[Any, Any], Any]
"""``rearrange(student_outputs, teacher_outputs)`` returns the teacher outputs that the objective reads instead."""


def owned(outputs: Any) -> Any:
    """Return a copy of an adaptor's dict and of the lists and dicts in it; anything else is returned unchanged.

    An adaptor may fill the same dict for each model and batch, and the teacher's outputs are used after the student has
    run.
    """
    if type(outputs) is dict:
        return {key: type(value)(value) if type(value) in _REUSED else value for key, value in outputs.items()}
    if isinstance(outputs, Tagged):
        return Tagged(outputs.task, owned(outputs.value))
    return outputs


def captured(
    capture: Capture | None, model: nn.Module, adaptor: Adaptor | None, batch: Any, model_args: Mapping[str, Any]
) -> Any:
    """Return the result of the model's adaptor for ``batch``, with the outputs of captured modules, if any."""
    if capture is None or not capture.paths:
        outputs = call(model, batch, model_args)
        return owned(outputs if adaptor is None else adaptor(batch, outputs))
    with capture.reading():
        outputs = call(model, batch, model_args)
    if adaptor is not None:
        outputs = adaptor(batch, outputs)
    if isinstance(outputs, Tagged):
        return Tagged(outputs.task, capture.join(outputs.value))
    return capture.join(outputs)


def student_outputs(  # noqa: PLR0917  what a forward pass needs
    capture: Capture | None,
    student: nn.Module,
    adaptor: Adaptor | None,
    objective: Any,
    batch: Any,
    model_args: Mapping[str, Any],
) -> Any:
    """Return ``captured(…)``; without an adaptor, with the class labels that ``forward`` does not take.

    For a tagged batch, the adaptor and the objective of its task are used. Errors are prefixed with the task.
    """
    found = captured(capture, student, adaptor, batch, model_args)
    if isinstance(found, Tagged):
        tasks: Any = adaptor
        if tasks.of(found.task) is not None:
            return found
        try:
            return Tagged(found.task, _labelled(found.value, student, objective.of(found.task), batch, model_args))
        except KdplugError as error:
            raise error.at(found.task) from error.__cause__
    return found if adaptor is not None else _labelled(found, student, objective, batch, model_args)


def _labelled(outputs: Any, student: nn.Module, objective: Any, batch: Any, model_args: Mapping[str, Any]) -> Any:
    needs_loss = getattr(objective, "hard_label_loss", None) is not None
    return with_labels(outputs, student, batch, model_args, needs_loss=needs_loss)


class Micro:
    """The arguments of one micro-batch's forward pass.

    It is deliberately a plain object: DDP copies and rebuilds containers in its arguments, but passes this through.
    """

    __slots__ = ("batch", "epoch", "ids", "micro_batch", "model_args", "progress", "step", "teacher", "total_steps")

    def __init__(
        self,
        batch: Any,
        teacher: Any,
        model_args: Mapping[str, Any],
        *,
        progress: float,
        step: int,
        total_steps: int,
        epoch: int = 0,
        ids: Any = None,
        micro_batch: int = 0,
    ) -> None:
        self.batch = batch
        self.teacher = teacher
        self.model_args = model_args
        self.progress = progress
        self.step = step
        self.total_steps = total_steps
        self.epoch = epoch
        self.ids = ids
        self.micro_batch = micro_batch


class TrainingModule(nn.Module):
    """The student, its adaptor and the objective behind one ``forward``.

    Projections and parameters of loss modules are therefore treated like the student: device moves, gradient
    synchronization, clipping, precision. The teacher is not part of it.
    """

    student: nn.Module
    objective: Objective | TaskObjective

    def __init__(self, student: nn.Module, adaptor: Adaptor | None, objective: Objective | TaskObjective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.adaptor = adaptor
        self.capture: Capture | None = None
        self.rearrange: Rearrange | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside the block, capture the student's modules that matches name whenever the student runs."""
        self.objective.connect(student=self.student)
        self.capture = Capture(self.student, self.objective.paths("student"), "student")
        try:
            with self.capture.hooked():
                yield
        finally:
            self.capture = None

    def outputs(self, batch: Any, model_args: Mapping[str, Any]) -> Any:
        """Return the result of the student's adaptor for ``batch``, with captured outputs inside ``hooked()``."""
        return student_outputs(self.capture, self.student, self.adaptor, self.objective, batch, model_args)

    def forward(self, micro: Micro) -> tuple[Tensor, tuple[Tensor, ...], LossReport]:
        """Return the weighted total, its summands, and the report that contains both.

        DDP, FSDP and autocast process the tensors in a tuple, but not those in a report. A loss uses either.
        """
        report = self.report(micro)
        parts = tuple(part.total for term in report.terms.values() for part in term.parts)
        return report.total, parts, report

    def report(self, micro: Micro) -> LossReport:
        """Return the loss of one micro-batch, for callers that use no wrapper."""
        if getattr(micro.batch, "is_generated", False):
            with without_labels(self.objective):
                return self._report(micro)
        return self._report(micro)

    def _report(self, micro: Micro) -> LossReport:
        student, teacher = self.outputs(micro.batch, micro.model_args), micro.teacher
        report: LossReport = self.objective(
            student=student,
            teacher=teacher if self.rearrange is None else self.rearrange(student, teacher),
            progress=micro.progress,
            step=micro.step,
            total_steps=micro.total_steps,
            epoch=micro.epoch,
            example_ids=micro.ids,
            micro_batch=micro.micro_batch,
        )
        return report
