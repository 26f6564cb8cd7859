"""The stages of a recipe in its record, and in the messages of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.table import Table

from kdplug.config.error_path import prefixed
from kdplug.config.recipe import Recipe
from kdplug.config.stage import Stage
from kdplug.recipes.task import Resolved, resolve_distillation
from kdplug.report.record import resolved_training, used_entries
from kdplug.report.table import temperature_line, terms_table


class ResolvedStage(NamedTuple):
    """A stage, and its distillation with qualified names and all settings."""

    stage: Stage
    resolved: Resolved

    @property
    def title(self) -> str:
        """One line that says what the stage starts from and who teaches it."""
        start = "a new student" if self.stage.start is None else f"the student of stage {self.stage.start}"
        teacher = "" if self.stage.teacher is None else f"; its teacher is the student of stage {self.stage.teacher}"
        frozen = f"; frozen: {', '.join(self.stage.freeze)}" if self.stage.freeze else ""
        line = temperature_line(self.resolved.distillation)
        return f"Stage {self.stage.name}: starts from {start}{teacher}{frozen}. {line}".rstrip()

    @property
    def table(self) -> Table:
        """The table of its terms."""
        return terms_table(self.resolved.distillation, self.resolved.terms)


def resolved_stages(recipe: Recipe) -> Iterator[ResolvedStage]:
    """Yield each stage of a recipe with its resolved distillation.

    Raises: ``KdplugError`` with the path of the field that cannot be used.
    """
    for stage in recipe.planned_stages():
        with prefixed("stages", stage.place):
            yield ResolvedStage(stage, resolve_distillation(stage.recipe))


def stages_record(recipe: Recipe) -> dict[str, Any]:
    """Return the stages with everything that they inherit, and the entries that they use, for ``kdplug-run.json``."""
    stages, entries = [], []
    for stage, resolved in resolved_stages(recipe):
        stages.append(
            {
                "name": stage.name,
                "start": stage.start,
                "teacher": stage.teacher,
                "freeze": list(stage.freeze),
                "distillation": resolved.distillation.to_dict(),
                "training": resolved_training(stage.recipe),
            }
        )
        for entry in used_entries(resolved.distillation):
            entries.append({**entry, "path": f"stages.{stage.place}.distillation.{entry['path']}"})
    return {"stages": stages, "entries": entries}
