"""A run as it is seen from outside, and what is left of it at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from kdplug.objective.report import LossReport


@dataclass(slots=True, eq=False)
class Run:
    """What observers see. Only ``step`` changes.

    ``step`` counts the optimizer steps that are done, out of ``total_steps``. ``model`` is the student as the user made it,
    whatever wraps it.
    """

    model: nn.Module
    teacher: nn.Module | None
    objective: nn.Module
    optimizer: Optimizer
    total_steps: int
    output_dir: Path
    is_main: bool
    process_index: int
    num_processes: int
    step: int = 0

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return min(1.0, self.step / self.total_steps)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves: the steps done, the last step's loss (detached), the checkpoints written, and its duration.

    ``best`` is the folder of the checkpoint with the best evaluation; ``skipped`` counts steps whose gradient was not finite.
    """

    step: int
    report: LossReport | None
    output_dir: Path
    checkpoints: tuple[Path, ...]
    seconds: float
    best: Path | None = None
    stopped_early: bool = False
    skipped: int = 0
