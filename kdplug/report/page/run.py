"""Read the files of a completed run that its report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdplug.report.page.difference import Differences, read_differences
from kdplug.report.page.history import HISTORY, History, read_history
from kdplug.report.page.results import TEACHER, Record, Results, read_record, read_results


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run's results, its record, the history of each arm and seed, and the examples with different predictions."""

    folder: Path
    label: str
    results: Results
    record: Record
    recipe: Mapping[str, Any]
    histories: Mapping[tuple[str, int], History]
    differences: Differences | None

    @property
    def task(self) -> str:
        """The task's name without its distribution."""
        return self.record.task


def read_run(folder: Path, label: str = "") -> RunFiles:
    """Read a completed run in ``folder``. Raises: ``RunError`` that names the file, the key and a fix."""
    results = read_results(folder)
    record, recipe = read_record(folder)
    return RunFiles(
        folder,
        label or folder.resolve().name,
        results,
        record,
        recipe,
        read_histories(folder, results, record),
        read_differences(folder, results),
    )


def read_histories(folder: Path, results: Results, record: Record) -> dict[tuple[str, int], History]:
    """Return the existing histories by arm and seed. Raises: ``RunError`` for a damaged file."""
    weights = record.recipe.distillation.constant_weights()
    found = {}
    for arm, figures in results.ordered.items():
        for run in figures.runs if arm != TEACHER else ():
            history = read_history(folder / f"seed-{run.seed}" / arm / HISTORY, results.metric, weights)
            if history is not None:
                found[arm, run.seed] = history
    return found
