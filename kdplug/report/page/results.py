"""Read and check ``metrics.json`` and ``kdplug-run.json``, with the keys that the report uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kdplug.report.page.file import read_object, validated
from kdplug.report.record import RECORD

METRICS = "metrics.json"
"""Name of the file."""

TEACHER, CONTROL, DISTILLED, SHUFFLED = "teacher", "no_teacher", "distilled", "shuffled"
NAMES = {
    TEACHER: "teacher",
    CONTROL: "no teacher",
    DISTILLED: "distilled",
    SHUFFLED: "shuffled teacher",
}
"""Display names of the arms, in the order of the report."""

LARGEST_FIGURE = 1e100
Figure = Annotated[float, Field(ge=-LARGEST_FIGURE, le=LARGEST_FIGURE)]
"""A finite number that charts can scale."""

Count = Annotated[int, Field(ge=0, le=2**63)]
Metrics = dict[str, Figure | None]
ClassName = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
Interval = Annotated[list[Figure], Field(min_length=2, max_length=2)]


class _Data(BaseModel):
    """Validated data. Unknown keys, which a later version may have written, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Verdict(_Data):
    """Outcome of one comparison. A positive difference means that the first arm is better."""

    outcome: Literal["BEATS", "LOSES", "CANNOT TELL"]
    reason: str = ""
    difference: Figure | None = None
    scale: str = ""
    seed_interval: Interval | None = None
    unit_interval: Interval | None = None
    interval: Interval | None = None
    confidence: Figure = 0.95
    half_width: Figure | None = None
    limited_by: str | None = None
    margin: Figure | None = None
    seeds_for_margin: Count | None = None
    seeds: Count = 0
    units: Count = 0


class Run(_Data):
    """One seed of an arm: metrics on test and validation, and cost."""

    seed: int
    metrics: Metrics
    validation: Metrics | None = None
    best_step: Count | None = None
    steps: Count | None = None
    examples: Count | None = None
    labelled: Count | None = None
    seconds: Figure | None = None
    peak_memory: Count | None = None
    stop_reason: str | None = None
    evaluators: dict[str, Metrics] = {}


class PerClass(_Data):
    """Precision, recall, F1 and support of each class."""

    classes: list[ClassName]
    precision: list[Figure | None]
    recall: list[Figure | None]
    f1: list[Figure | None]
    support: list[Figure]

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        lists = (self.precision, self.recall, self.f1, self.support)
        if any(len(one) != len(self.classes) for one in lists):
            raise ValueError("precision, recall, f1 and support must have the same length as classes")
        return self


class Confusion(_Data):
    """Counts by true class (row) and predicted class (column)."""

    classes: list[ClassName]
    counts: list[list[Count]]

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.classes)
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"counts must have {size} rows and columns, one for each class")
        return self


class Bin(_Data):
    """Mean confidence and accuracy of the predictions in one interval of confidence."""

    confidence: Figure | None
    accuracy: Figure | None
    count: Count


class Calibration(_Data):
    """Expected calibration error, and the bins from which it is computed."""

    error: Figure | None
    bins: list[Bin]


class ArmResults(_Data):
    """One arm: means over its seeds, standard deviations, each run, size and speed."""

    metrics: Metrics
    sd: Metrics | None = None
    runs: list[Run] = Field(min_length=1)
    parameters: Count | None = None
    bytes: Count | None = None
    seconds_per_example: Figure | None = None
    units_per_second: Figure | None = None
    per_class: PerClass | None = None
    confusion: Confusion | None = None
    calibration: Calibration | None = None


class Agreement(_Data):
    """Share of test items on which the student agrees with the teacher."""

    teacher_right: Figure | None = None
    teacher_wrong: Figure | None = None


class Results(_Data):
    """The file ``metrics.json``."""

    metric: str
    is_lower_better: bool
    aggregate: str | None = None
    target: str | None = None
    unit: str = "examples"
    seeds: list[int] = Field(min_length=1)
    controls: list[str] = []
    saved_seed: Count | None = None
    parts: dict[str, Count] = {}
    arms: dict[str, ArmResults]
    verdict: Verdict | None = None
    example_level: Verdict | None = None
    gap_closed: Figure | None = None
    teacher_worse: bool = False
    seeds_added: bool = False
    failed: dict[str, str] = {}
    evaluators_failed: dict[str, str] = {}
    agreement: Agreement | None = None

    @model_validator(mode="after")
    def _has_arms(self) -> Self:
        if DISTILLED not in self.arms:
            raise ValueError(f"arms must contain {DISTILLED!r}")
        for name, arm in self.arms.items():
            if name not in NAMES:
                raise ValueError(f"arms.{name} is unknown. The arms are {', '.join(NAMES)}")
            if self.metric not in arm.metrics:
                raise ValueError(f"arms.{name}.metrics must contain the metric {self.metric!r}")
        return self

    @property
    def ordered(self) -> dict[str, ArmResults]:
        """The arms in the order of the report."""
        return {name: self.arms[name] for name in NAMES if name in self.arms}

    @property
    def saved(self) -> int:
        """The seed of the saved student."""
        return self.seeds[0] if self.saved_seed is None else self.saved_seed


class PluginRecord(_Data):
    """A plugin that was enabled."""

    dist: str
    version: str | None = None
    editable: bool = False
    commit: str | None = None
    sha256: str | None = None


class TaskRecord(_Data):
    """The task of a resolved recipe."""

    name: str


class TermRecord(_Data):
    """A term of a resolved distillation."""

    name: str | None = None
    weight: Figure | dict[str, Figure] = 1.0
    weight_scheduler: Any = "none"


class DistillationRecord(_Data):
    """The distillation of a resolved recipe."""

    terms: list[TermRecord] | None = None
    balancer: Any = "none"
    hard_label_weight: Figure = 0.0
    hard_label_weight_scheduler: Any = "none"

    def constant_weights(self) -> dict[str, float]:
        """Return the weights of the terms that have no schedule; none with a balancer."""
        if self.balancer != "none":
            return {}
        found = {
            term.name: term.weight
            for term in self.terms or ()
            if term.weight_scheduler == "none" and term.name and isinstance(term.weight, (int, float))
        }
        if self.hard_label_weight_scheduler == "none":
            found["hard_label_loss"] = self.hard_label_weight
        return found


class RecipeRecord(_Data):
    """A resolved recipe."""

    task: TaskRecord
    distillation: DistillationRecord = DistillationRecord()


class Record(_Data):
    """The file ``kdplug-run.json``."""

    kdplug: str | None = None
    python: str | None = None
    torch: str | None = None
    plugins: list[PluginRecord] = []
    recipe: RecipeRecord
    config_sha256: str | None = None
    data: dict[str, Any] = {}

    @property
    def task(self) -> str:
        """The task's name without its distribution."""
        return self.recipe.task.name.rpartition(":")[2]


def read_record(folder: Path) -> tuple[Record, dict[str, Any]]:
    """Read ``kdplug-run.json``; also return its resolved recipe as plain data. Raises: ``RunError``."""
    file = folder / RECORD
    found = read_object(file)
    return validated(Record, found, file), found["recipe"]


def read_results(folder: Path) -> Results:
    """Read ``metrics.json``. Raises: ``RunError`` with file, key and fix."""
    file = folder / METRICS
    return validated(Results, read_object(file), file)
