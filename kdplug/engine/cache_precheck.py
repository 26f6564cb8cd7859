"""Whether a cache folder can serve, found out before there is a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdplug.config.training import TrainingConfig
from kdplug.engine.absence import Absent
from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_key import source_of
from kdplug.engine.cache_run import Opened
from kdplug.engine.cache_teacher import CachedTeacher
from kdplug.engine.pair import Adaptor
from kdplug.engine.process import process
from kdplug.objective.objective import Objective


def precheck(
    cache: TeacherCache,
    adaptor: Adaptor | None,
    objective: Objective,
    dataloader: Iterable[Any],
    config: TrainingConfig,
) -> None:
    """See that the folder of ``cache``, where there is one already, is of this adaptor, these data, and what ``cache`` is about,
    and that it holds the layers that ``objective`` reads.

    What can only be told with the teacher at hand, or in the run itself, is left to that: the teacher's weights, examples
    beyond both ends and the middle of the data, and modules that are read by their path.

    Raises: ``RunError`` that says what differs; ``RunError`` for data without places, and for a damaged manifest.
    """
    precision = config.precision if "precision" in config.model_fields_set else None
    with process(config.device, precision) as accelerator:
        cached = CachedTeacher(Absent(adaptor), source_of(dataloader))
        Opened(cache, cached, {}, accelerator).check(objective)
