"""The teacher caches of one run: one, or one for each task that has one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from accelerate import Accelerator
from rich.console import Console
from torch.distributed.tensor import DTensor

from kdplug.engine.absence import Absent
from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_key import source_of
from kdplug.engine.cache_mass import KeptMass
from kdplug.engine.cache_run import Opened
from kdplug.engine.cache_teacher import CachedTeacher
from kdplug.engine.ensemble import Ensemble
from kdplug.engine.mixture import Mixture, TaskTeachers
from kdplug.engine.teacher import Teacher, TeacherSide
from kdplug.errors import RunError
from kdplug.objective.objective import Objective
from kdplug.objective.task_objective import TaskObjective

Caches = TeacherCache | Mapping[str, TeacherCache] | None
"""A cache, or one by task; ``None`` and no task: the teacher is asked for every batch."""


class CacheSession:
    """Puts a cached teacher in the place of each teacher that is to be asked once, and keys on the examples of its loader.

    ``teacher``, ``dataloader`` and ``postprocess`` stand where those that it was given stood.

    Raises: ``RunError`` for data whose examples cannot be found again.
    """

    def __init__(
        self,
        caches: Caches,
        teacher: TeacherSide | None,
        dataloader: Iterable[Any],
        postprocess: Callable[[Any], Any] | None,
        model_args: Mapping[str, Any],
    ) -> None:
        self.teacher = teacher
        self.dataloader = dataloader
        self.postprocess = postprocess
        self._model_args = model_args
        self._cached: dict[str, tuple[TeacherCache, CachedTeacher]] = {}
        self._opened: dict[str, Opened] = {}
        if isinstance(caches, TeacherCache):
            cached = CachedTeacher(
                cast("Teacher | Ensemble | Absent", teacher), source_of(self.dataloader), self.postprocess
            )
            self._cached[""] = caches, cached
            self.teacher, self.dataloader, self.postprocess = cached, cached.source.loader, cached.prepared
        elif caches:
            self._by_task(caches, cast("TaskTeachers", teacher), cast("Mixture", dataloader))

    def _by_task(self, caches: Mapping[str, TeacherCache], teachers: TaskTeachers, mixture: Mixture) -> None:
        sides, loaders, processors = dict(teachers.teachers), dict(mixture.loaders), dict(mixture.postprocessors)
        for task, cache in caches.items():
            try:
                source = source_of(loaders[task])
            except RunError as error:
                raise error.at("dataloaders", task) from error.__cause__
            cached = CachedTeacher(cast("Teacher | Ensemble", sides[task]), source, processors.get(task))
            self._cached[task] = cache, cached
            sides[task], loaders[task], processors[task] = cached, source.loader, cached.prepared
        self.teacher = TaskTeachers(sides)
        self.dataloader = Mixture(loaders, mixture.shares, mixture.seed, processors)

    def open(self, accelerator: Accelerator) -> None:
        """Find what earlier runs left.

        Raises: ``RunError`` for a cache of something else, a damaged one, or a teacher that is sharded.
        """
        for task, (cache, cached) in self._cached.items():
            if any(isinstance(parameter, DTensor) for parameter in cached.model.parameters()):
                raise RunError(
                    "a teacher whose weights are spread over the processes (FSDP) is not cached",
                    field="is_caching_logits",
                )
            self._opened[task] = Opened(cache, cached, self._model_args, accelerator)
            self._opened[task].find()

    def fill(self, objective: Objective | TaskObjective, *, shown: bool) -> None:
        """Ask each teacher about what it was not asked about yet. ``shown`` says so on the error stream.

        Raises: ``RunError`` for data or outputs that cannot be cached.
        """
        for task, opened in self._opened.items():
            own = objective.of(task) if isinstance(objective, TaskObjective) else objective
            opened.fill(own)
            cache, named = self._cached[task][0], f"{task}: " if task else ""
            assert cache.summary is not None
            mass = None if own.kd_loss is None else KeptMass.of_cache(cache.coding, cache.summary.tally)
            if shown:
                kept = "" if mass is None else f"; {mass}"
                Console(stderr=True).print(f"{named}{cache.summary}{kept}", highlight=False, soft_wrap=True)
            if mass is not None and mass.warning is not None:
                warnings.warn(f"{named}teacher_cache_codec: {mass.warning}", stacklevel=2)
