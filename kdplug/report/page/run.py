"""Read the files of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdplug.report.page.difference import Differences, read_differences
from kdplug.report.page.file import damaged, read_object
from kdplug.report.page.history import HISTORY, History, constant_weights, read_history
from kdplug.report.page.results import TEACHER, Results, read_results
from kdplug.report.record import RECORD


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run's results, its record, the history of each arm and seed, and the examples with different predictions."""

    folder: Path
    label: str
    results: Results
    record: Mapping[str, Any]
    histories: Mapping[tuple[str, int], History]
    differences: Differences | None

    @property
    def task(self) -> str:
        """The task's name without its distribution."""
        return str(self.record["recipe"]["task"]["name"]).rpartition(":")[2]


def read_run(folder: Path, label: str = "") -> RunFiles:
    """Read a completed run in ``folder``. Raises: ``RunError`` that names the file, the key and a fix."""
    results = read_results(folder)
    record = _record(folder / RECORD)
    return RunFiles(
        folder,
        label or folder.resolve().name,
        results,
        record,
        read_histories(folder, results, record),
        read_differences(folder, results),
    )


def _record(file: Path) -> dict[str, Any]:
    found = read_object(file)
    recipe = found.get("recipe")
    task = recipe.get("task") if isinstance(recipe, dict) else None
    if not isinstance(task, dict) or not isinstance(task.get("name"), str):
        raise damaged(file, "recipe.task.name must be a text")
    return found


def read_histories(folder: Path, results: Results, record: Mapping[str, Any]) -> dict[tuple[str, int], History]:
    """Return the histories that there are, by arm and seed. Raises: ``RunError`` for a damaged one."""
    distillation = record["recipe"].get("distillation")
    weights = constant_weights(distillation) if isinstance(distillation, dict) else {}
    found = {}
    for arm, figures in results.ordered.items():
        for run in figures.runs if arm != TEACHER else ():
            history = read_history(folder / f"seed-{run.seed}" / arm / HISTORY, results.metric, weights)
            if history is not None:
                found[arm, run.seed] = history
    return found
