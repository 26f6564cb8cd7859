"""What a recipe may compare where its two models have vocabularies of their own."""

from __future__ import annotations

from collections.abc import Iterator

from kdplug.config.recipe import Recipe
from kdplug.contracts.across_vocabularies import ATTRIBUTE
from kdplug.contracts.cache_codec import CacheCodec
from kdplug.contracts.task import Task
from kdplug.contracts.task_option import SpansVocabularies
from kdplug.errors import ConfigError
from kdplug.host.registry import cache_codecs, losses


def check_vocabularies(recipe: Recipe, task: Task) -> None:
    """See that nothing takes a class or a position of one side for that of the other. The task has checked itself before.

    Vocabularies of equal size would let all of this pass at every step, so that only what is learned would show it.

    Raises: ``ConfigError`` for the first setting that does.
    """
    if not isinstance(task, SpansVocabularies) or not (differ := task.vocabulary_difference):
        return
    for field, why, remedy in _mistaken(recipe):
        raise ConfigError(
            f"{why}, and student and teacher have vocabularies of their own: {differ}. {remedy}", field=field
        )


def _mistaken(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """The settings, why they cannot be meant, and what to do."""
    distillation, leave = recipe.distillation, "Leave it out"
    if distillation.intermediate_matches:
        yield "distillation.intermediate_matches", "compare features token by token", "Leave them out"
    if not distillation.kd_loss_weight and distillation.kd_loss_weight_scheduler is None:
        return
    entry = losses.build(distillation.kd_loss_type, site="kd").entry
    if not getattr(entry.load(), ATTRIBUTE, False):
        why = f"{entry.qualified} compares class by class"
        yield "distillation.kd_loss_type", why, "Take a loss that is declared across_vocabularies"
    if distillation.probability_shift:
        yield "distillation.probability_shift", "needs the teacher's logit at the student's label", leave
    if distillation.temperature_scheduler is not None:
        yield "distillation.temperature_scheduler", "may compare logits class by class", leave
    if distillation.padded_vocabulary == "drop":
        yield "distillation.padded_vocabulary", "says that the classes which one side alone has are padding", leave
    codec = recipe.training.teacher_cache_codec
    if codec is not None and distillation.is_caching_logits:
        made = cache_codecs.build(codec).target
        if isinstance(made, CacheCodec) and made.uses_temperature:  # of probabilities some are left out
            yield "training.teacher_cache_codec", f"{codec.name!r} may keep single classes", f"{leave}, or name another"
