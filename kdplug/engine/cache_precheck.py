"""Whether a cache folder can serve, found out before there is a teacher, and whether a model is the teacher that it is of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from kdplug.config.training import TrainingConfig
from kdplug.engine.absence import Absent
from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_fingerprint import changes, teacher_fingerprint
from kdplug.engine.cache_folder import TEACHER, CacheFolder
from kdplug.engine.cache_key import source_of
from kdplug.engine.cache_run import Opened
from kdplug.engine.cache_teacher import CachedTeacher
from kdplug.engine.pair import Adaptor
from kdplug.engine.process import process
from kdplug.engine.teacher import Teacher
from kdplug.errors import RunError
from kdplug.objective.objective import Objective

_OF_OUTPUTS = ("weights", "hooks")


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


def check_teacher(path: Path, model: nn.Module) -> None:
    """See that ``model`` has the weights and hooks of the teacher that the cache in ``path`` was built from, if there is one.

    Raises: ``RunError`` that says what differs; ``RunError`` for a damaged manifest.
    """
    manifest = CacheFolder(path).manifest()
    if manifest is None:
        return
    now = teacher_fingerprint({"teacher": Teacher(model)})
    kept, found = ({part: one[part] for part in _OF_OUTPUTS if part in one} for one in (manifest.fingerprint, now))
    if differing := changes(kept, found):
        raise RunError(
            f"the teacher is not the one that the cache {path} was built from. What differs:\n    "
            + "\n    ".join(differing)
            + f"\nRestore that teacher ({path / TEACHER}, where the recipe fits it), or delete {path} and build the cache again",
            field="teacher_cache",
        )
