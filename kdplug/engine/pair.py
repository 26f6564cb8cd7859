"""Student and objective as the one module that is wrapped, synchronised and clipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdplug.engine.batch import call
from kdplug.objective.report import LossReport

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective

Adaptor = Callable[[Any, Any], Any]
"""``adaptor(batch, model_outputs)`` gives what the objective reads."""


class Micro:
    """One micro-batch on its way through the pair.

    A plain object on purpose: DDP copies and rebuilds the containers it is called with, and lets this one pass.
    """

    __slots__ = ("batch", "model_args", "progress", "step", "teacher", "total_steps")

    def __init__(
        self, batch: Any, teacher: Any, model_args: Mapping[str, Any], *, progress: float, step: int, total_steps: int
    ) -> None:
        self.batch = batch
        self.teacher = teacher
        self.model_args = model_args
        self.progress = progress
        self.step = step
        self.total_steps = total_steps


class Pair(nn.Module):
    """The student, its adaptor and the objective behind one ``forward``.

    Projections and the parameters of loss modules thus share everything that happens to the student: device moves,
    gradient synchronisation, clipping, precision. The teacher stays outside.
    """

    student: nn.Module
    objective: Objective

    def __init__(self, student: nn.Module, adaptor: Adaptor | None, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.adaptor = adaptor

    def outputs(self, batch: Any, model_args: Mapping[str, Any]) -> Any:
        """What the student makes of ``batch``, after its adaptor."""
        outputs = call(self.student, batch, model_args)
        return outputs if self.adaptor is None else self.adaptor(batch, outputs)

    def forward(self, micro: Micro) -> tuple[Tensor, LossReport]:
        """The weighted total, alone so that DDP and autocast see it, and the report it belongs to."""
        report = self.objective(
            student=self.outputs(micro.batch, micro.model_args),
            teacher=micro.teacher,
            progress=micro.progress,
            step=micro.step,
            total_steps=micro.total_steps,
        )
        return report.total, report
