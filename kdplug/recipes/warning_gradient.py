"""Terms that train nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kdplug.recipes.plan_sample import BATCHES, Sample
from kdplug.recipes.warning import PlanWarning


def dead_terms(sample: Sample) -> Iterator[PlanWarning]:
    """Each term whose weighted loss gives the student no gradient, or one that is not finite."""
    for term in sample.objective.terms:
        pull = sample.pulls.get(term.name)
        if pull is None:
            message = f"{term.name} never counts: its schedule leaves its weight at 0 from start to end"
            yield PlanWarning("dead_term", "distillation", message)
        elif not math.isfinite(pull.norm) or not math.isfinite(pull.value):
            message = f"{term.name} is {pull.value:g} on the first batches, and its gradient's norm {pull.norm:g}"
            yield PlanWarning("not_finite", "distillation", message)
        elif not pull.is_alive:
            yield PlanWarning(
                "dead_term", "distillation", f"{term.name} gives the student no gradient: {_why(sample, term.name)}"
            )


def _why(sample: Sample, name: str) -> str:
    if not sample.pulls[name].is_counted:
        return (
            f"there was nothing to count in {BATCHES} batches. Are its labels all ignored, or is its mask an additive one (0 = keep), "
            "which has to be converted: (mask == 0)?"
        )
    return (
        f"none of the student's trainable parameters takes part in it, in {BATCHES} batches. Is what it reads detached, computed "
        "under no_grad, or made of frozen layers only?"
    )
