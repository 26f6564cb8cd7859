"""What a recipe leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdplug.recipes.preparation import Made
from kdplug.report.comparison import Line

METRICS = "metrics.json"
CURVES = "curves.png"

DISTILLED = "student, distilled"


@dataclass(frozen=True, slots=True)
class Figures:
    """A model's figures on the test part, its parameters, the seconds that one example takes in a batch, the bytes of its
    weights on disk, and the task's units that it goes through in a second.
    """

    metrics: dict[str, float]
    parameters: int
    seconds_per_example: float
    bytes: int
    units_per_second: float

    def to_data(self) -> dict[str, Any]:
        """Plain data for ``metrics.json``."""
        return {
            **self.metrics,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "seconds_per_example": self.seconds_per_example,
            "units_per_second": self.units_per_second,
        }


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """The figures of the three models, by the same ``metric`` on the same test examples, and where the files are.

    ``unit`` is what ``units_per_second`` counts. ``distilled`` and ``baseline`` are the same student, from the same initial weights, after ``steps`` optimizer steps with
    and without a teacher. ``made`` says how many batches of the distillation the task made anew, where it makes any.
    """

    metric: str
    teacher: Figures
    distilled: Figures
    baseline: Figures
    steps: int
    output_dir: Path
    is_lower_better: bool = False
    unit: str = "examples"
    made: Made | None = None

    def to_data(self) -> dict[str, Any]:
        """Plain data for ``metrics.json``."""
        return {
            "metric": self.metric,
            "is_lower_better": self.is_lower_better,
            "unit": self.unit,
            "optimizer_steps": self.steps,
            **({} if self.made is None else {"batches_made_anew": self.made._asdict()}),
            "teacher": self.teacher.to_data(),
            "student_distilled": self.distilled.to_data(),
            "student_without_distillation": self.baseline.to_data(),
        }

    def lines(self) -> list[Line]:
        """The rows of the final table."""
        named = {
            "teacher": self.teacher,
            DISTILLED: self.distilled,
            "student, without distillation": self.baseline,
        }
        return [
            Line(
                name,
                figures.metrics[self.metric],
                figures.parameters,
                figures.seconds_per_example,
                figures.bytes,
                figures.units_per_second,
            )
            for name, figures in named.items()
        ]

    @property
    def title(self) -> str:
        """The metric as it heads a column or an axis."""
        return f"{self.metric} (lower is better)" if self.is_lower_better else self.metric

    def levels(self) -> dict[str, float]:
        """The metric of the models that the distilled student is compared with."""
        return {line.model: line.metric for line in self.lines() if line.model != DISTILLED}
