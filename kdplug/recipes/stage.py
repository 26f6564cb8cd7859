"""The trainings that a recipe is made of, each in a folder of its own."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from kdplug.config.recipe import Recipe
from kdplug.config.training import TrainingConfig
from kdplug.engine.checkpoint import begin
from kdplug.errors import RunError

_NEVER_BEFORE_THE_END = 10**9


class Stage(StrEnum):
    """A training of a recipe; its value is the name of its folder below ``output_dir``."""

    TEACHER = "teacher"
    STUDENT = "student"
    BASELINE = "baseline"

    def folder(self, recipe: Recipe) -> Path:
        """Where its checkpoints and its log go."""
        return Path(recipe.output_dir) / self.value

    def config(self, recipe: Recipe, folder: Path | None = None) -> TrainingConfig:
        """How it is run, below the recipe's ``output_dir`` or below ``folder``. Each stage ends with a checkpoint, so that it is not repeated when the recipe is resumed.

        ``ckpt_frequency: 0`` means that one and no other. The teacher's and the baseline's checkpoints are there for nothing
        but resuming: of theirs only the last stays. The teacher is fitted without gradient accumulation.
        """
        place = self.folder(recipe) if folder is None else folder / self.value
        config = recipe.training_config(str(place))
        changes: dict[str, object] = {}
        if config.ckpt_frequency == 0:
            changes = {"ckpt_frequency": 1, "ckpt_epoch_frequency": _NEVER_BEFORE_THE_END}
        if self is not Stage.STUDENT:
            changes |= {"log_dir": None, "trackers": None, "keep_last": 1}
            changes |= {"teacher_cache": None, "teacher_cache_dtype": None, "teacher_cache_codec": None}
        if self is Stage.TEACHER:
            changes |= {"gradient_accumulation_steps": 1, "ckpt_steps": None}
        return config.model_copy(update=changes)


def check_writable(recipe: Recipe) -> None:
    """Raises: ``RunError`` where the folders of the stages cannot be made below ``output_dir``. Nothing is written."""
    output_dir = Path(recipe.output_dir)
    for place in (output_dir, *(stage.folder(recipe) for stage in Stage)):
        there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        if not there.is_dir():
            reason = f"{str(there)!r} is not a folder"
        elif not os.access(there, os.W_OK | os.X_OK):
            reason = f"no permission to write into {str(there)!r}"
        else:
            continue
        raise RunError(
            f"cannot write into {str(output_dir)!r}: {reason}. Choose another output_dir", field="output_dir"
        )


def forget_checkpoints(recipe: Recipe) -> None:
    """Let nothing go on from what an earlier run left in the folders of the stages. Checkpoints stay where they are."""
    for stage in Stage:
        if stage.folder(recipe).is_dir():
            begin(stage.folder(recipe), is_main=True)
