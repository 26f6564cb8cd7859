"""The stages of a recipe in its record, and in the messages of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from rich.table import Table

from kdplug.config.error_path import in_stage
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
        """One line with the student that the stage starts from, and its teacher."""
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
        with in_stage(stage):
            yield ResolvedStage(stage, resolve_distillation(stage.recipe))


def unranked_student(stage: Stage, reads: Collection[str]) -> str | None:
    """Return a warning if a stage chooses its student by the metric, but trains neither its logits nor on labels.

    ``reads`` are the adaptor keys that its objective reads.
    """
    training = stage.recipe.training
    chooses = training.evaluations and (training.best_checkpoint or training.early_stopping is not None)
    if not chooses or {"logits", "losses"} & set(reads):
        return None
    return (
        f"stage {stage.name!r} passes on the student with the best metric, but it has no loss on logits or labels, so the "
        "metric does not measure it. Set best_checkpoint: false, which passes on the student of the last step"
    )


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
        path = f"stages.{stage.place}.distillation"
        entries += [{**one, "path": f"{path}.{one['path']}"} for one in used_entries(resolved.distillation)]
    return {"stages": stages, "entries": entries}
