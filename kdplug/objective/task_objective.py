"""A module that contains one objective for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from kdplug.config.error_path import prefixed
from kdplug.contracts.outputs import Tagged
from kdplug.errors import KdplugError
from kdplug.objective.capture.path import Side
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport

_PREFIX = "task_"
"""Prefix that keeps task names from clashing with torch module attributes."""


class TaskObjective(nn.Module):
    """Dispatches outputs to the objective of their task. Tasks share no config, projection or term."""

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        for task, objective in objectives.items():
            objective.name_task(task)
        self.objectives = nn.ModuleDict({_PREFIX + task: objective for task, objective in objectives.items()})

    def of(self, task: str) -> Objective:
        """Return the objective of one task."""
        return cast("Objective", self.objectives[_PREFIX + task])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the given order."""
        return tuple(key.removeprefix(_PREFIX) for key in self.objectives)

    @property
    def needs_materialize(self) -> bool:
        """Return whether a projection of any task has an unknown width."""
        return any(self.of(task).needs_materialize for task in self.tasks)

    def paths(self, side: Side) -> tuple[str, ...]:
        """Return the paths to capture for any task."""
        return tuple(dict.fromkeys(path for task in self.tasks for path in self.of(task).paths(side)))

    def connect(self, student: nn.Module) -> None:
        """Resolve the student's module paths for each task, as ``Objective.connect`` does."""
        for task in self.tasks:
            with prefixed(task):
                self.of(task).connect(student)

    def materialize(self, student: Tagged, teacher: Any, *, num_examples: int | None = None) -> None:
        """Build the projections of one task from its outputs for one batch, as ``Objective.materialize`` does."""
        try:
            own = self.of(student.task)
            own.materialize(student=student.value, teacher=teacher.value, num_examples=num_examples)
        except KdplugError as error:
            raise error.at(student.task) from error.__cause__

    def forward(
        self,
        student: Tagged,
        teacher: Tagged,
        progress: float = 0.0,
        step: int = 0,
        total_steps: int = 0,
        *,
        epoch: int = 0,
        example_ids: object = None,
        micro_batch: int | None = None,
    ) -> LossReport:
        """Return the loss of one batch of one task. Its terms are named ``task/term``.

        Raises: the errors of ``Objective``, with the task prepended to the path.
        """
        try:
            report: LossReport = self.of(student.task)(
                student=student.value,
                teacher=teacher.value,
                progress=progress,
                step=step,
                total_steps=total_steps,
                epoch=epoch,
                example_ids=example_ids,
                micro_batch=micro_batch,
            )
        except KdplugError as error:
            raise error.at(student.task) from error.__cause__
        except Exception as error:
            error.add_note(f"in task {student.task!r}")
            raise
        return LossReport(report.total, {f"{student.task}/{name}": term for name, term in report.terms.items()})

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer groups of every task."""
        return [group for task in self.tasks for group in self.of(task).param_groups()]
