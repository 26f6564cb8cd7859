"""Student and objective as the one module that is wrapped, synchronised and clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdplug.contracts.tagged import Tagged
from kdplug.engine.batch import call
from kdplug.objective.capture import Capture
from kdplug.objective.report import LossReport

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective
    from kdplug.objective.task_objective import TaskObjective

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


class Pair(nn.Module):
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
