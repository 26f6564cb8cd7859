"""What the teacher cache of a recipe keeps."""

from __future__ import annotations

from collections.abc import Iterator

from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_coding import encode
from kdplug.engine.cache_content import Wanted, flatten
from kdplug.engine.cache_folder import CacheFolder
from kdplug.engine.cache_head import take_heads
from kdplug.engine.cache_mass import KeptMass
from kdplug.engine.cache_report import CacheReport
from kdplug.engine.cache_tally import Tally
from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning


def kept_mass(cache: TeacherCache | None, sample: Sample, *, is_trained: bool) -> KeptMass | None:
    """The mass that the kd loss reads: that of the cache where there is one, otherwise that of the first batch.

    ``None`` where nothing is left out, and where the teacher is not trained yet, so that its distribution says nothing.
    """
    teacher = sample.of_teacher
    if sample.objective.kd_loss is None:
        return None
    if cache is None or cache.coding is None:
        return KeptMass.of_heads(teacher.logits or ())
    if cache.path is not None and CacheFolder(cache.path).manifest() is not None:
        return KeptMass.of_cache(cache.coding, CacheReport.read(cache.path).tally)
    if not is_trained:
        return None
    heads = take_heads(flatten(teacher, Wanted.of(sample.objective)), teacher)
    tallies = [encode(cache.coding, name, logits, mask, 0).tally for name, (logits, mask) in heads.items()]
    return KeptMass.of_cache(cache.coding, Tally.sum(tallies))


def thin_cache(sample: Sample) -> Iterator[PlanWarning]:
    """A sparse teacher whose classes hold little of its distribution at the temperature of the loss."""
    if sample.kept_mass is not None and (message := sample.kept_mass.warning) is not None:
        field = "training.teacher_cache_codec" if sample.recipe.training.teacher_cache_codec else "task"
        yield PlanWarning("kept_mass", field, message)
