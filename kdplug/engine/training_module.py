"""Student and objective as the one module that is wrapped, synchronised and clipped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kdplug.contracts.outputs import Tagged
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.report import LossReport

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective
    from kdplug.objective.task_objective import TaskObjective


_SEQUENCES = (tuple, list)
"""The commonest batches are told by their type alone, at a fraction of what asking for an instance costs."""


class Parts(NamedTuple):
    """A batch as each side gets it; ``cache`` stands in for the teacher's outputs where the batch brings them."""

    teacher: Any
    student: Any
    cache: Any = None


def split(batch: Any) -> Parts:
    """Divide ``{"teacher": …, "student": …}`` batches; any other batch goes to both sides whole.

    A third key ``teacher_cache`` holds what the teacher would have returned. Both parts of a tagged batch are tagged.
    """
    if type(batch) in _SEQUENCES:
        return Parts(batch, batch)
    if isinstance(batch, Tagged):
        teacher, student, cache = split(batch.value)
        return Parts(Tagged(batch.task, teacher), Tagged(batch.task, student), cache)
    if isinstance(batch, Mapping) and "teacher" in batch and "student" in batch:
        return Parts(batch["teacher"], batch["student"], batch.get("teacher_cache"))
    return Parts(batch, batch)


def call(model: Callable[..., Any], batch: Any, model_args: Mapping[str, Any]) -> Any:
    """Call ``model`` with ``batch``: a mapping by keyword, a list or tuple by position, anything else as one argument.

    A ``PackedSequence`` is one argument, though Python calls it a tuple. No model sees the tag of a batch.
    """
    if type(batch) in _SEQUENCES:
        return model(*batch, **model_args)
    if isinstance(batch, Tagged):
        batch = batch.value
    if isinstance(batch, Mapping):
        return model(**batch, **model_args)
    if isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        return model(*batch, **model_args)
    return model(batch, **model_args)


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it on ``device``, in containers of the types they came in.

    What knows how to move itself (``.to``) does: tensors, ``PackedSequence``, transformers' ``BatchEncoding``.
    Named tuples, mappings (``ModelOutput``, ``defaultdict``, …) and dataclasses keep their types; other objects pass through.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (str, bytes, torch.nn.Module)):
        return value
    if callable(getattr(value, "to", None)):
        return value.to(device)
    return _moved_items(value, device)


def _moved_items(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return _rebuild(value, {key: to_device(item, device) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value) if f.init})
    return value


def _rebuild(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of ``original``'s type that holds ``items``."""
    if type(original) is dict:
        return items
    try:
        rebuilt: Any = copy.copy(original)
        for key, item in items.items():
            rebuilt[key] = item
    except TypeError:  # an immutable mapping
        return items
    return rebuilt


Adaptor = Callable[[Any, Any], Any]
"""``adaptor(batch, model_outputs)`` gives what the objective reads."""


def captured(
    capture: Capture | None, model: nn.Module, adaptor: Adaptor | None, batch: Any, model_args: Mapping[str, Any]
) -> Any:
    """What a model makes of ``batch``, after its adaptor, with what its modules gave where something captures it."""
    if capture is None or not capture.paths:
        outputs = call(model, batch, model_args)
        return outputs if adaptor is None else adaptor(batch, outputs)
    with capture.reading():
        outputs = call(model, batch, model_args)
    if adaptor is not None:
        outputs = adaptor(batch, outputs)
    if isinstance(outputs, Tagged):
        return Tagged(outputs.task, capture.join(outputs.value))
    return capture.join(outputs)


class Micro:
    """One micro-batch on its way through the pair.

    A plain object on purpose: DDP copies and rebuilds the containers it is called with, and lets this one pass.
    """

    __slots__ = ("batch", "micro_batch", "model_args", "progress", "step", "teacher", "total_steps")

    def __init__(
        self,
        batch: Any,
        teacher: Any,
        model_args: Mapping[str, Any],
        *,
        progress: float,
        step: int,
        total_steps: int,
        micro_batch: int = 0,
    ) -> None:
        self.batch = batch
        self.teacher = teacher
        self.model_args = model_args
        self.progress = progress
        self.step = step
        self.total_steps = total_steps
        self.micro_batch = micro_batch


class TrainingModule(nn.Module):
    """The student, its adaptor and the objective behind one ``forward``.

    Projections and the parameters of loss modules thus share everything that happens to the student: device moves,
    gradient synchronisation, clipping, precision. The teacher stays outside.
    """

    student: nn.Module
    objective: Objective | TaskObjective

    def __init__(self, student: nn.Module, adaptor: Adaptor | None, objective: Objective | TaskObjective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.adaptor = adaptor
        self.capture: Capture | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside the block, the student's modules that matches name are read whenever the student is asked."""
        self.objective.connect(student=self.student)
        self.capture = Capture(self.student, self.objective.paths("student"), "student")
        try:
            with self.capture.hooked():
                yield
        finally:
            self.capture = None

    def outputs(self, batch: Any, model_args: Mapping[str, Any]) -> Any:
        """What the student makes of ``batch``, after its adaptor, with what its modules gave inside ``hooked()``."""
        return captured(self.capture, self.student, self.adaptor, batch, model_args)

    def forward(self, micro: Micro) -> tuple[Tensor, tuple[Tensor, ...], LossReport]:
        """The weighted total, what it is the sum of, and the report that both belong to.

        DDP, FSDP and autocast see the tensors of a tuple and not those of a report. A loss is made of either.
        """
        report = self.report(micro)
        parts = tuple(part.total for term in report.terms.values() for part in term.parts)
        return report.total, parts, report

    def report(self, micro: Micro) -> LossReport:
        """The loss of one micro-batch, for a caller that nothing stands in front of."""
        report: LossReport = self.objective(
            student=captured(self.capture, self.student, self.adaptor, micro.batch, micro.model_args),
            teacher=micro.teacher,
            progress=micro.progress,
            step=micro.step,
            total_steps=micro.total_steps,
            micro_batch=micro.micro_batch,
        )
        return report
