"""What happened during a run, for the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from kdplug.engine.run import Run
    from kdplug.objective.report import LossReport

_EVALUATIONS = 20


class History:
    """An observer that keeps each term before weighting, and now and then what ``evaluate`` says of the student.

    ``terms`` and ``student`` map optimizer steps to values. Losses stay on the device until ``terms`` is asked for.
    """

    def __init__(self, evaluate: Callable[[nn.Module], float]) -> None:
        self.student: list[tuple[int, float]] = []
        self._evaluate = evaluate
        self._steps: list[int] = []
        self._values: dict[str, list[Tensor]] = {}

    @property
    def terms(self) -> Mapping[str, list[tuple[int, float]]]:
        """Term to steps and values; one synchronisation for each term."""
        return {
            name: list(zip(self._steps, torch.stack(values).tolist(), strict=True))
            for name, values in self._values.items()
        }

    def run_start(self, run: Run) -> None:
        self.student.append((0, self._evaluate(run.model)))

    def step_end(self, run: Run, step: int, report: LossReport) -> None:
        self._steps.append(step)
        for name, term in report.terms.items():
            self._values.setdefault(name, []).append(term.value.detach())
        if step % max(1, run.total_steps // _EVALUATIONS) == 0 or step == run.total_steps:
            self.student.append((step, self._evaluate(run.model)))

    def run_end(self, run: Run, error: BaseException | None) -> None:
        pass
