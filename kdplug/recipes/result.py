"""Results of a recipe: of each training run, of each arm over its seeds, and of their comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kdplug.errors import RunError
from kdplug.evidence import rows as rows_file
from kdplug.evidence.verdict import Verdict
from kdplug.host.bounded_json import json_value, read_json
from kdplug.recipes.arm import PREDICTIONS, RESULT, Arm, ArmRun
from kdplug.recipes.measure import Figures
from kdplug.recipes.shuffle import BATCHES
from kdplug.recipes.task import OnPolicyCounts
from kdplug.report.file import replacing, write_json
from kdplug.report.table import Line


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The result of one complete training run.

    ``metrics`` are those on the test part, ``validation`` those of the evaluation whose weights were used, after
    ``best_step``; both are empty or ``None`` without evaluations. ``labelled`` is the number of examples whose labels
    the model learned from, ``None`` if unknown; ``seconds`` is ``None`` if the run was resumed. ``aggregate`` and
    ``target`` are those of the predictions, ``None`` without them. ``singletons`` is the share of teacher outputs in the
    first batches that the arm ``shuffled`` could not exchange. ``stop_reason`` is that of ``run.stop``. ``evaluators``
    contains the figures of each evaluator, which are stored in a separate file. ``stages`` are the results of the stages
    of the recipe.
    """

    arm: Arm
    seed: int
    metrics: Mapping[str, float]
    validation: Mapping[str, float]
    best_step: int | None
    steps: int
    examples: int
    labelled: int | None
    seconds: float | None
    peak_memory: int | None
    parameters: int
    bytes: int
    aggregate: str | None = None
    target: str | None = None
    made: OnPolicyCounts | None = None
    stages: list[dict[str, Any]] | None = None
    singletons: float | None = None
    stop_reason: str | None = None
    evaluators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def run(self) -> ArmRun:
        return ArmRun(self.arm, self.seed)

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        keys = ("seed", "best_step", "steps", "examples", "labelled", "seconds", "peak_memory")
        found = {key: getattr(self, key) for key in keys}
        return {
            "seed": found.pop("seed"),
            "metrics": finite(self.metrics),
            "validation": finite(self.validation),
            **found,
            **({"stages": self.stages} if self.stages else {}),
            **({} if self.singletons is None else {"singletons": self.singletons}),
            **({} if self.stop_reason is None else {"stop_reason": self.stop_reason}),
            **({"evaluators": {name: finite(one) for name, one in self.evaluators.items()}} if self.evaluators else {}),
        }

    def write(self, folder: Path, identity: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the predictions, then the result, which marks the run as complete.

        ``identity`` is a digest of everything that the result depends on.
        """
        write_rows(folder / PREDICTIONS, ({"id": place, **row} for place, row in enumerate(rows)))
        data = {
            **asdict(replace(self, evaluators={})),
            "metrics": finite(self.metrics),
            "validation": finite(self.validation),
        }
        write_json(folder / RESULT, {"identity": identity, **data})

    @classmethod
    def read(cls, folder: Path, identity: str) -> RunFigures | None:
        """Return the result in ``folder``, or ``None`` if the run is not complete or has another identity.

        Raises: ``RunError`` for a damaged file.
        """
        file = folder / RESULT
        if not file.is_file() or not (folder / PREDICTIONS).is_file():
            return None
        try:
            found = read_json(file)
            if found.pop("identity") != identity:
                return None
            made = found.pop("made")
            for key in ("metrics", "validation"):
                found[key] = {name: math.nan if value is None else value for name, value in found[key].items()}
            found["arm"] = Arm(found["arm"])
            return cls(**found, made=None if made is None else OnPolicyCounts(*made))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "Delete it, and run the recipe again with --resume to repeat the evaluation"
            raise RunError(f"{file} is damaged: {error}. {remedy}") from error


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return the values with ``None`` in place of each that is not finite, which JSON cannot represent."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write each row as a JSON object on one line; a number that is not finite becomes ``null``."""
    with replacing(file) as temporary:
        rows_file.write_rows(temporary, rows)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that ``write_rows`` wrote; a score that was not finite is ``nan``.

    Raises: ``RunError`` for a damaged file.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json_value(line)
                row["score"] = math.nan if row["score"] is None else float(row["score"])
            except (ValueError, KeyError, TypeError) as error:
                remedy = "Delete the file, and run the recipe again with --resume to repeat the evaluation"
                raise RunError(f"{file}, line {number}, is damaged: {error}. {remedy}") from error
            yield row


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """The results of an arm: one training run per seed, and what the model costs to use.

    ``details`` are the figures of its predictions for ``metrics.json``: per class, confusion, calibration.
    """

    runs: Sequence[RunFigures]
    figures: Figures
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the seeds."""
        return {name: mean(values) for name, values in self._values().items()}

    @property
    def sd(self) -> dict[str, float]:
        """The sample standard deviation of each metric over the seeds; empty with a single seed."""
        found = {name: values for name, values in self._values().items() if len(values) > 1}
        return {name: stdev(values) if all(map(math.isfinite, values)) else math.nan for name, values in found.items()}

    def _values(self) -> dict[str, list[float]]:
        return {name: [run.metrics[name] for run in self.runs] for name in self.runs[0].metrics}

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        sd = {"sd": finite(self.sd)} if len(self.runs) > 1 else {}
        return {
            "metrics": finite(self.metrics),
            **sd,
            "runs": [run.to_data() for run in self.runs],
            "parameters": self.figures.parameters,
            "bytes": self.figures.bytes,
            "seconds_per_example": self.figures.seconds_per_example,
            "units_per_second": self.figures.units_per_second,
            **self.details,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on the distilled student and the control by the ``aggregate`` of the predictions, and how far distillation closed the gap to the teacher.

    ``example_level`` compares with the control ``shuffled``, of whose teacher outputs the share ``singletons`` were not
    exchanged. ``teacher_worse`` is true if the teacher was worse than a control, on the validation part or, unless it
    ``has_validation``, on the test part. ``details`` are figures of each arm's predictions.
    """

    aggregate: str | None
    verdict: Verdict | None
    example_level: Verdict | None
    singletons: float | None
    gap_closed: float | None
    teacher_worse: bool
    agreement: Mapping[str, Any] | None
    disagreements: int | None
    details: Mapping[Arm, Mapping[str, Any]]
    has_validation: bool = True

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        return {
            "verdict": None if self.verdict is None else self.verdict.to_data(),
            "example_level": None if self.example_level is None else self.example_level.to_data(),
            "gap_closed": self.gap_closed,
            "teacher_worse": self.teacher_worse,
            "agreement": self.agreement,
            "disagreements": self.disagreements,
        }

    def lines(self, *, has_control: bool, seeds_added: bool) -> Iterator[str]:
        """Yield the lines that are printed below the table."""
        if self.verdict is not None:
            yield from self.verdict.lines("distilled", "no_teacher")
        elif not has_control:
            yield "No verdict: the recipe trains no student without distillation. Set controls: [no_teacher] to train one."
        if seeds_added:
            yield "Seeds were added after results of this run were known, so a false verdict is more likely than the intervals indicate."
        if self.example_level is not None:
            yield from self.example_level.gain_lines("gain from example-level knowledge", "distilled", "shuffled")
        if self.singletons is not None:
            yield (
                f"In the arm shuffled, {self.singletons:.1%} of the teacher outputs were the only one of their predicted class "
                f"in their batch and stayed with their example (counted on the first {BATCHES} batches)."
            )
        if self.gap_closed is not None:
            yield f"Gap closed: {self.gap_closed:.0%} of the difference between the teacher and the student without it."
        if self.teacher_worse:
            part = "validation" if self.has_validation else "test"
            yield f"On the {part} part the teacher was worse than the student trained without it, so distillation was unlikely to help."


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """Results of all arms, by the same ``metric`` on the same test examples, and the output folder.

    ``unit`` is the unit of
    ``units_per_second``. The students of a seed start from the same initial weights. ``failed``
    holds the error of each control that failed.
    """

    metric: str
    is_lower_better: bool
    unit: str
    steps: int
    seeds: tuple[int, ...]
    controls: tuple[str, ...]
    saved_seed: int
    parts: Mapping[str, int]
    arms: Mapping[Arm, ArmFigures]
    output_dir: Path
    compared: Comparison
    failed: Mapping[ArmRun, str] = field(default_factory=dict)
    seeds_added: bool = False
    evaluators_failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def teacher(self) -> ArmFigures:
        return self.arms[Arm.TEACHER]

    @property
    def distilled(self) -> ArmFigures:
        return self.arms[Arm.DISTILLED]

    @property
    def no_teacher(self) -> ArmFigures:
        return self.arms[Arm.NO_TEACHER]

    @property
    def made(self) -> OnPolicyCounts | None:
        """The distillation batches that the task replaced with new ones, of all seeds; ``None`` without any."""
        counts = [run.made for run in self.distilled.runs if run.made is not None]
        return OnPolicyCounts(*map(sum, zip(*counts, strict=True))) if counts else None

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        first = self.distilled.runs[0]
        return {
            "metric": self.metric,
            "is_lower_better": self.is_lower_better,
            "aggregate": self.compared.aggregate,
            "target": first.target,
            "unit": self.unit,
            "optimizer_steps": self.steps,
            "seeds": list(self.seeds),
            **({"seeds_added": True} if self.seeds_added else {}),
            "controls": list(self.controls),
            "saved_seed": self.saved_seed,
            "parts": dict(self.parts),
            **({} if self.made is None else {"batches_generated": self.made._asdict()}),
            "arms": {arm.value: figures.to_data() for arm, figures in self.arms.items()},
            **self.compared.to_data(),
            **({"failed": {str(run): error for run, error in self.failed.items()}} if self.failed else {}),
            **({"evaluators_failed": dict(self.evaluators_failed)} if self.evaluators_failed else {}),
        }

    def lines(self) -> list[Line]:
        """Return the rows of the final table."""
        return [
            Line(
                arm.label,
                found.metrics[self.metric],
                found.figures.parameters,
                found.figures.seconds_per_example,
                found.figures.bytes,
                found.figures.units_per_second,
                found.sd.get(self.metric),
            )
            for arm in Arm
            if (found := self.arms.get(arm)) is not None
        ]

    def evaluator_rows(self) -> list[tuple[str, list[tuple[float, float | None] | None]]]:
        """Return for each figure of each evaluator its name, and for each arm its mean and standard deviation, if any."""
        names = {
            (one, name): None
            for arm in self.arms.values()
            for run in arm.runs
            for one, figures in run.evaluators.items()
            for name in figures
        }
        return [
            (f"{one}: {name}", [_over_seeds(arm.runs, one, name) for arm in self.arms.values()]) for one, name in names
        ]

    @property
    def title(self) -> str:
        """The metric as a column or axis title."""
        return f"{self.metric} (lower is better)" if self.is_lower_better else self.metric


def _over_seeds(runs: Iterable[RunFigures], evaluator: str, name: str) -> tuple[float, float | None] | None:
    values = [found[name] for run in runs if name in (found := run.evaluators.get(evaluator, {}))]
    if not values:
        return None
    return mean(values), stdev(values) if len(values) > 1 else None
