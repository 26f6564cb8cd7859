"""List the arms of a recipe (teacher, controls, distilled student) and their training runs: one per seed of each student."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kdplug.config.key import keys_that_need
from kdplug.config.recipe import Recipe
from kdplug.config.training import TrainingConfig
from kdplug.engine.checkpoint.folder import steps

HISTORY = "history.jsonl"
"""Losses and evaluations of a run, in its folder."""

RESULT = "result.json"
"""The result of a complete run, in its folder."""

PREDICTIONS = "predictions.jsonl"
"""Predictions for each test example. The file in a run's folder contains the run's, and that in ``output_dir`` all."""

SECONDS = "seconds.jsonl"
"""The time that a run took up to some of its steps, in its folder."""

STAGE_RESULT = "stage.json"
"""The settings of a stage, and its result once it is complete, in its folder."""

_STAGE_FOLDER = "stage-"
_NEVER_BEFORE_THE_END = 10**9
_SEED = re.compile(r"seed-(0|[1-9][0-9]*)")


class Arm(StrEnum):
    """A model that a recipe compares with the others."""

    TEACHER = "teacher"
    NO_TEACHER = "no_teacher"
    DISTILLED = "distilled"
    SHUFFLED = "shuffled"

    @property
    def is_distilled(self) -> bool:
        """True if the student of the arm learns from teacher outputs."""
        return self in (Arm.DISTILLED, Arm.SHUFFLED)

    @property
    def label(self) -> str:
        """The name of the arm in tables."""
        return _LABELS[self]


_LABELS = {
    Arm.TEACHER: "teacher",
    Arm.NO_TEACHER: "student, without distillation",
    Arm.DISTILLED: "student, distilled",
    Arm.SHUFFLED: "student, shuffled teacher",
}


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One training run of a recipe: an arm and the seed of its model, or one ``stage`` of it.

    ``is_single`` is true for the only teacher.
    """

    arm: Arm
    seed: int
    stage: str = ""
    is_single: bool = False

    def __str__(self) -> str:
        stage = f", stage {self.stage}" if self.stage else ""
        return self.arm.label if self.is_single else f"{self.arm.label}, seed {self.seed}{stage}"

    def folder(self, root: Path) -> Path:
        """Return the folder of its checkpoints, log and result in ``root``, the recipe's ``output_dir``."""
        if self.is_single:
            return root / self.arm.value
        found = root / f"seed-{self.seed}" / self.arm.value
        return found / f"{_STAGE_FOLDER}{self.stage}" if self.stage else found

    def config(self, recipe: Recipe, root: Path | None = None) -> TrainingConfig:
        """Return the training config of this run, in the recipe's ``output_dir`` or in ``root``.

        Each run ends with a checkpoint, so a resumed recipe does not repeat it; with ``ckpt_frequency: 0`` that is the
        only one, except the best. The checkpoints of the teacher and the controls serve only for resuming, so only the
        last and the best one are kept. The teacher is trained without gradient accumulation.
        """
        config = recipe.training_config(str(self.folder(Path(recipe.output_dir) if root is None else root)))
        changes: dict[str, object] = {"seed": self.seed}
        if config.ckpt_frequency == 0:
            changes |= {"ckpt_frequency": 1, "ckpt_epoch_frequency": _NEVER_BEFORE_THE_END}
        if self.arm is not Arm.DISTILLED:
            changes |= {"log_dir": None, "trackers": None, "keep_last": 1}
        elif config.log_dir is not None and len(recipe.student_seeds) > 1:
            changes |= {"log_dir": str(Path(config.log_dir) / f"seed-{self.seed}")}
        if self.stage and config.log_dir is not None:
            changes |= {"log_dir": str(Path(changes.get("log_dir", config.log_dir)) / self.stage)}  # type: ignore[arg-type]
        if not self.arm.is_distilled:
            changes |= dict.fromkeys(keys_that_need(TrainingConfig, "is_caching_logits"))
        if self.arm is Arm.TEACHER:
            changes |= {"gradient_accumulation_steps": 1, "ckpt_steps": None}
        return config.model_copy(update=changes)


def teacher_run(recipe: Recipe) -> ArmRun:
    """Return the run that trains the teacher of the recipe's ``seed``."""
    return _teacher_run(recipe, recipe.seed)


def teacher_runs(recipe: Recipe) -> list[ArmRun]:
    """Return the runs that train teachers: one, or one for each seed if the recipe varies its teacher."""
    return [_teacher_run(recipe, seed) for seed in recipe.teacher_seeds]


def _teacher_run(recipe: Recipe, seed: int) -> ArmRun:
    return ArmRun(Arm.TEACHER, seed, is_single="teacher" not in recipe.vary)


def distilled_run(recipe: Recipe) -> ArmRun:
    """Return the run of the distilled student of the recipe's ``seed``, for checks before training."""
    return ArmRun(Arm.DISTILLED, recipe.seed)


def student_runs(recipe: Recipe) -> list[ArmRun]:
    """Return the runs of all students in order: for each seed the controls, then the distilled student."""
    arms = [*map(Arm, recipe.controls), Arm.DISTILLED]
    return [ArmRun(arm, seed) for seed in recipe.student_seeds for arm in arms]


def every_run(recipe: Recipe) -> list[ArmRun]:
    """Return all runs in order, the teachers' first."""
    return [*teacher_runs(recipe), *student_runs(recipe)]


def arm_folders(output_dir: Path) -> Iterator[Path]:
    """Yield the folders of the runs of a seed that exist in ``output_dir``, of any recipe."""
    for folder in sorted(output_dir.iterdir()) if output_dir.is_dir() else ():
        if _SEED.fullmatch(folder.name):
            yield from (path for arm in Arm if (path := folder / arm.value).is_dir())


def stage_folders(output_dir: Path) -> Iterator[Path]:
    """Yield the folders of stages that exist in ``output_dir``, of any recipe."""
    for folder in arm_folders(output_dir):
        yield from (path for path in sorted(folder.glob(f"{_STAGE_FOLDER}*")) if path.is_dir())


def checkpoints(output_dir: Path) -> Iterator[Path]:
    """Yield the checkpoints of all runs in ``output_dir``."""
    for folder in (output_dir / Arm.TEACHER.value, *arm_folders(output_dir), *stage_folders(output_dir)):
        yield from (path for _, path in steps(folder))
