"""Settings that have no effect, or under which a run cannot succeed."""

from __future__ import annotations

from collections.abc import Iterator

from kdplug.config.recipe import RecipeTraining
from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning

_KD_ONLY = ("probability_shift", "kd_loss_type")
_TEMPERATURE = ("temperature", "temperature_scheduler")
_CHECK = "no_effect"
_LARGE_RATE = 10.0


def idle_settings(sample: Sample) -> Iterator[PlanWarning]:
    """What belongs to a kd loss that is off, matches of weight 0, and a teacher that no term reads."""
    given, terms = sample.recipe.distillation, [term for term, _, _ in sample.objective.matches.terms()]
    if not given.kd_loss_weight:
        unused = dict.fromkeys(_KD_ONLY, "has no effect: kd_loss_weight is 0")
        if not any("temperature" in term.inputs for term in terms):
            message = "has no effect: kd_loss_weight is 0, and no match's loss takes a temperature"
            unused |= dict.fromkeys(_TEMPERATURE, message)
        for field, message in unused.items():
            if field in given.model_fields_set and getattr(given, field):
                yield PlanWarning(_CHECK, f"distillation.{field}", message)
        if not terms:
            message = "nothing is learned from the teacher: the kd loss is off, and there is no match"
            yield PlanWarning(_CHECK, "distillation", message)
    for place, match in enumerate(given.intermediate_matches):
        if not match.weight:
            yield PlanWarning(_CHECK, f"distillation.intermediate_matches.{place}", "has no effect: its weight is 0")
    for place, one in enumerate(given.layer_map):
        if not one.weight:
            path = ".".join(map(str, ("distillation", *given.path_of_map(place))))
            yield PlanWarning(_CHECK, path, "has no effect: its weight is 0")


def large_rates(training: RecipeTraining, fit: RecipeTraining | None) -> Iterator[PlanWarning]:
    """Learning rates, of the student and of a teacher that is fitted first, at which a first step destroys the weights."""
    for field, one in (("training.lr", training), ("task", fit)):
        if one is not None and one.lr > _LARGE_RATE:
            message = (
                f"the learning rate is {one.lr:g}: {one.optimizer} moves a weight by about that much for a gradient of 1, so the loss will "
                "hardly stay finite"
            )
            yield PlanWarning("large_learning_rate", field, message)
