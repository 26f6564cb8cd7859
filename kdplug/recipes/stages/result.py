"""The result of a stage in its folder, and the check that a stage that has begun was not edited."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdplug.config.recipe import Recipe
from kdplug.config.stage import Stage
from kdplug.config.words import shown
from kdplug.engine.checkpoint.identity import differences
from kdplug.errors import ConfigError, RunError
from kdplug.host.bounded_json import read_json
from kdplug.recipes.arm import STAGE_RESULT, stage_folders
from kdplug.report.file import write_json


@dataclass(frozen=True, slots=True)
class StageResult:
    """The training of a stage: its steps, and the step whose weights its student has, which later stages start from.

    ``best_step`` is ``None`` for the weights of the last step; ``seconds`` is ``None`` if the stage was resumed.
    """

    name: str
    steps: int
    best_step: int | None
    validation: Mapping[str, float]
    seconds: float | None

    @property
    def chosen(self) -> int:
        """The step of the checkpoint that holds the stage's student."""
        return self.steps if self.best_step is None else self.best_step

    def to_data(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        finite = {name: value if math.isfinite(value) else None for name, value in self.validation.items()}
        return {**asdict(self), "validation": finite}

    def write(self, folder: Path, stage: Stage) -> None:
        """Mark a stage as complete."""
        write_json(folder / STAGE_RESULT, {"stage": stage.name, "identity": stage.identity(), "result": self.to_data()})

    @classmethod
    def read(cls, folder: Path) -> StageResult | None:
        """Return the result of a complete stage; ``None`` if it is not complete.

        Raises: ``RunError`` for a damaged file.
        """
        saved = _read(folder / STAGE_RESULT)
        if saved is None or saved["result"] is None:
            return None
        try:
            found = dict(saved["result"])
            values = {name: math.nan if one is None else float(one) for name, one in found.pop("validation").items()}
            return cls(**found, validation=values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(folder / STAGE_RESULT, error) from error


def begin(folder: Path, stage: Stage) -> None:
    """Store what a stage is before it trains, so that a later edit is found."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STAGE_RESULT, {"stage": stage.name, "identity": stage.identity(), "result": None})


def check_unchanged(recipe: Recipe) -> None:
    """Check that no stage that has begun in ``output_dir`` was edited or removed since.

    Raises: ``ConfigError`` with the path of the key; ``RunError`` for a damaged file.
    """
    stages = {stage.name: stage for stage in recipe.planned_stages()}
    for folder in stage_folders(Path(recipe.output_dir)):
        saved = _read(folder / STAGE_RESULT)
        if saved is None:
            continue
        name, state = saved["stage"], "is complete" if saved["result"] is not None else "has begun"
        way = (
            f"in {folder}, and a stage that has begun is not repeated. Undo the change, or start over in another output_dir "
            "or with --overwrite. To keep the stage as it is, resume with --resume-changed"
        )
        if name not in stages:
            raise ConfigError(f"lacks the stage {name!r}, which {state} {way}", field="stages")
        stage = stages[name]
        for key, first, now in _changed(saved["identity"], stage.identity()):
            raise ConfigError(
                f"was {first}, now {now}, but stage {name!r} {state} {way}", field=f"stages.{stage.place}.{key}"
            )


def _changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for difference in differences(saved, json.loads(json.dumps(now))):
        yield difference.path.lstrip("."), shown(difference.first), shown(difference.second)


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        if {"stage", "identity", "result"} <= set(found) and isinstance(found["identity"], dict):
            return dict(found)
    except (ValueError, TypeError) as error:
        raise _damaged(file, error) from error
    raise _damaged(file, ValueError("it lacks a key"))


def _damaged(file: Path, error: Exception) -> RunError:
    return RunError(f"{file} is damaged: {error}. Start over with --overwrite, or in another output_dir")
