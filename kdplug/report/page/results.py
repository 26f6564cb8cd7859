"""The data of ``metrics.json``, as a page needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kdplug.report.page.file import read_object, validated

METRICS = "metrics.json"
"""Name of the file."""

TEACHER, CONTROL, DISTILLED, SHUFFLED = "teacher", "no_teacher", "distilled", "shuffled"
NAMES = {
    TEACHER: "teacher",
    CONTROL: "no teacher",
    DISTILLED: "distilled",
    SHUFFLED: "shuffled teacher",
}
"""Display names of the arms, in their order on a page."""

Metrics = dict[str, float | None]
ClassName = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Data(BaseModel):
    """Checked data; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Verdict(_Data):
    """Outcome of one comparison. Positive differences are in favour of the first arm."""

    outcome: Literal["BEATS", "LOSES", "CANNOT TELL"]
    reason: str = ""
    difference: float | None = None
    scale: str = ""
    seed_interval: Interval | None = None
    unit_interval: Interval | None = None
    interval: Interval | None = None
    confidence: float = 0.95
    half_width: float | None = None
    limited_by: str | None = None
    margin: float | None = None
    seeds_for_margin: int | None = None
    seeds: int = 0
    units: int = 0


class Run(_Data):
    """One seed of an arm: metrics on test and validation, and cost."""

    seed: int
    metrics: Metrics
    validation: Metrics | None = None
    best_step: int | None = None
    steps: int | None = None
    examples: int | None = None
    labelled: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None


class PerClass(_Data):
    """Precision, recall, F1 and support of each class."""

    classes: list[ClassName]
    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]
    support: list[float]

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        lists = (self.precision, self.recall, self.f1, self.support)
        if any(len(one) != len(self.classes) for one in lists):
            raise ValueError("precision, recall, f1 and support must be as long as classes")
        return self


class Confusion(_Data):
    """Counts by true class (row) and predicted class (column)."""

    classes: list[ClassName]
    counts: list[list[int]]

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.classes)
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"counts must have {size} rows and columns, one for each class")
        return self


class Bin(_Data):
    """Mean confidence and accuracy of predictions of similar confidence."""

    confidence: float | None
    accuracy: float | None
    count: int


class Calibration(_Data):
    """Expected calibration error and the bins that it is computed from."""

    error: float | None
    bins: list[Bin]


class ArmResults(_Data):
    """One arm: means over its seeds, standard deviations, each run, size and speed."""

    metrics: Metrics
    sd: Metrics | None = None
    runs: list[Run] = Field(min_length=1)
    parameters: int | None = None
    bytes: int | None = None
    seconds_per_example: float | None = None
    units_per_second: float | None = None
    per_class: PerClass | None = None
    confusion: Confusion | None = None
    calibration: Calibration | None = None


class Agreement(_Data):
    """Share of test items on which the student agrees with the teacher."""

    teacher_right: float | None = None
    teacher_wrong: float | None = None


class Results(_Data):
    """The file ``metrics.json``."""

    metric: str
    is_lower_better: bool
    aggregate: str | None = None
    target: str | None = None
    unit: str = "examples"
    seeds: list[int] = Field(min_length=1)
    controls: list[str] = []
    saved_seed: int | None = None
    parts: dict[str, int] = {}
    arms: dict[str, ArmResults]
    verdict: Verdict | None = None
    example_level: Verdict | None = None
    gap_closed: float | None = None
    teacher_worse: bool = False
    seeds_added: bool = False
    failed: dict[str, str] = {}
    agreement: Agreement | None = None

    @model_validator(mode="after")
    def _has_arms(self) -> Self:
        if DISTILLED not in self.arms:
            raise ValueError(f"arms must hold {DISTILLED!r}")
        for name, arm in self.arms.items():
            if name not in NAMES:
                raise ValueError(f"arms.{name} is none of {', '.join(NAMES)}")
            if self.metric not in arm.metrics:
                raise ValueError(f"arms.{name}.metrics must hold {self.metric!r}, the metric")
        return self

    @property
    def ordered(self) -> dict[str, ArmResults]:
        """The arms in the order of a page."""
        return {name: self.arms[name] for name in NAMES if name in self.arms}

    @property
    def saved(self) -> int:
        """The seed of the saved student."""
        return self.seeds[0] if self.saved_seed is None else self.saved_seed


def read_results(folder: Path) -> Results:
    """Read ``metrics.json``. Raises: ``RunError`` with file, key and fix."""
    file = folder / METRICS
    return validated(Results, read_object(file), file)
