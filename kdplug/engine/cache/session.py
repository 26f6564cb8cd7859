"""The teacher caches of one run: a single one, or one per task."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch.distributed.tensor import DTensor

from kdplug.config.training import TrainingConfig
from kdplug.engine.accumulation_batches import generators
from kdplug.engine.cache.cache import TeacherCache
from kdplug.engine.cache.fingerprint import OneTeacher
from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.cache.kept_mass import KeptMass
from kdplug.engine.cache.key import source_of
from kdplug.engine.cache.run import OpenCache
from kdplug.engine.cache.summary import CacheSummary
from kdplug.engine.cache.teacher import CachedTeacher
from kdplug.engine.checkpoint.fingerprint import UNKNOWN
from kdplug.engine.example_ids import ExampleIds
from kdplug.engine.forward_state import materialize, modes, random_state_kept
from kdplug.engine.hashing import text_digest
from kdplug.engine.multi_task import MultiTaskLoader, TaskTeachers
from kdplug.engine.observe.activity import busy
from kdplug.engine.parallel.process import process
from kdplug.engine.teacher import Ensemble, Teacher, TeacherSide
from kdplug.engine.training_module import TrainingModule, split, to_device
from kdplug.errors import RunError
from kdplug.objective.objective import Objective
from kdplug.objective.task_objective import TaskObjective
from kdplug.objective.teacher import STUDENT

Caches = TeacherCache | Mapping[str, TeacherCache] | None
"""A cache, or one by task. Without a cache, the teacher runs on every batch."""


_READ_BACK = 16
"""Number of batches that are read from a filled cache to check that training can use it."""


class CacheSession:
    """Replaces each teacher that has a cache by a cached teacher, and adds keys to the examples of its loader, and
    ``example_ids`` to the batches of every loader whose losses request them.

    ``teacher``, ``dataloader`` and ``postprocess`` replace the arguments of the same name.

    Raises: ``RunError`` for data whose examples cannot be looked up again.
    """

    def __init__(
        self,
        caches: Caches,
        teacher: TeacherSide | None,
        dataloader: Iterable[Any],
        postprocess: Callable[[Any], Any] | None,
        model_args: Mapping[str, Any],
        *,
        example_ids: ExampleIds,
    ) -> None:
        self.teacher = teacher
        self.dataloader = dataloader
        self.postprocess = postprocess
        self._model_args = model_args
        self._cached: dict[str, tuple[TeacherCache, CachedTeacher]] = {}
        self._opened: dict[str, OpenCache] = {}
        if isinstance(caches, TeacherCache):
            cached = CachedTeacher(cast("OneTeacher | Ensemble", teacher), source_of(self.dataloader), self.postprocess)
            self._cached[""] = caches, cached
            self.teacher, self.dataloader, self.postprocess = cached, cached.source.loader, cached.prepared
        elif caches:
            self._by_task(caches, cast("TaskTeachers", teacher), cast("MultiTaskLoader", dataloader))
        self.dataloader, self.postprocess = example_ids.added_to(self.dataloader, self.postprocess)

    def _by_task(self, caches: Mapping[str, TeacherCache], teachers: TaskTeachers, loader: MultiTaskLoader) -> None:
        sides, loaders, processors = dict(teachers.teachers), dict(loader.loaders), dict(loader.postprocessors)
        for task, cache in caches.items():
            try:
                source = source_of(loaders[task])
            except RunError as error:
                raise error.at("dataloaders", task) from error.__cause__
            cached = CachedTeacher(cast("Teacher | Ensemble", sides[task]), source, processors.get(task))
            self._cached[task] = cache, cached
            sides[task], loaders[task], processors[task] = cached, source.loader, cached.prepared
        self.teacher = TaskTeachers(sides)
        self.dataloader = MultiTaskLoader(loaders, loader.shares, loader.seed, processors)

    def open(self, accelerator: Accelerator) -> None:
        """Load the outputs stored by earlier runs.

        Raises: ``RunError`` for a cache built from different inputs, a damaged cache, or a sharded teacher.
        """
        for task, (cache, cached) in self._cached.items():
            if any(isinstance(parameter, DTensor) for parameter in cached.model.parameters()):
                raise RunError(
                    "a teacher whose weights are sharded over the processes (FSDP) cannot be cached. Pass a teacher that "
                    "is not sharded, or set is_caching_logits: false",
                    field="is_caching_logits",
                )
            with busy("Checking the teacher cache"):
                self._opened[task] = OpenCache(cache, cached, self._model_args, accelerator)
                self._opened[task].find()

    def check(self, objective: Objective | TaskObjective) -> None:
        """Check that the stored outputs have what ``objective`` reads, before widths are read from them.

        Raises: ``RunError`` if a folder lacks it. In-memory outputs that lack it are dropped.
        """
        for task, opened in self._opened.items():
            opened.check_read(objective.of(task) if isinstance(objective, TaskObjective) else objective)

    def fill(self, objective: Objective | TaskObjective, *, shown: bool) -> None:
        """Run each teacher on the examples without stored outputs. ``shown`` prints progress and a summary to stderr.

        Raises: ``RunError`` for data or outputs that cannot be cached.
        """
        for task, opened in self._opened.items():
            own = objective.of(task) if isinstance(objective, TaskObjective) else objective
            opened.fill(own)
            cache, named = self._cached[task][0], f"{task}: " if task else ""
            assert cache.summary is not None
            is_read = any(term.teacher != STUDENT for term, _ in own.configured.on_logits())
            mass = None if not is_read else KeptMass.of_cache(cache.coding, cache.summary.tally)
            if shown:
                kept = "" if mass is None else f"; {mass}"
                Console(stderr=True).print(f"{named}{cache.summary}{kept}", highlight=False, soft_wrap=True)
            if mass is not None and mass.warning is not None:
                warnings.warn(f"{named}teacher_cache_codec: {mass.warning}", stacklevel=2)

    def read_back(self) -> None:
        """Read the stored outputs for the first batches of the loader, as training does, and leave its order unchanged.

        Raises: ``RunError`` if the outputs of several examples cannot form a batch, or the data differ in each epoch.
        """
        assert self.postprocess is not None
        with busy("Reading the teacher cache"), random_state_kept(generators(self.dataloader)):
            for batch in islice(self.dataloader, _READ_BACK):
                split(self.postprocess(batch)).cache.outputs()


def fill(
    pair: TrainingModule,
    teacher: TeacherSide,
    config: TrainingConfig,
    cache: TeacherCache,
    dataloader: Iterable[Any],
    *,
    postprocess: Callable[[Any], Any] | None,
    model_args: Mapping[str, Any],
    shown: bool,
) -> CacheSummary:
    """Fill ``cache`` with the outputs of ``teacher`` for the examples of ``dataloader`` that the objective reads.

    Stored outputs are kept. Several processes divide the missing ones. The student runs once if the objective needs its
    widths.

    Raises: ``RunError`` for data, outputs or a folder that cannot be used.
    """
    with ExitStack() as stack:
        session, accelerator = _prepared(
            stack,
            pair,
            teacher,
            config,
            caches=cache,
            dataloader=dataloader,
            postprocess=postprocess,
            model_args=model_args,
            shown=shown,
        )
        session.fill(pair.objective, shown=shown and accelerator.is_main_process)
        session.read_back()
        accelerator.wait_for_everyone()
    assert cache.summary is not None
    return cache.summary


def first_outputs(
    pair: TrainingModule,
    teacher: OneTeacher,
    config: TrainingConfig,
    caches: Caches,
    dataloader: Iterable[Any],
    *,
    count: int,
) -> Iterator[tuple[Any, Any]]:
    """Yield the outputs of student and teacher, from its cache if there is one, for the first ``count`` batches.

    Both models are in eval mode. Projections whose widths are unknown are built.

    Raises: ``RunError`` for data, outputs or a folder that cannot be used.
    """
    with ExitStack() as stack:
        session, accelerator = _prepared(
            stack,
            pair,
            teacher,
            config,
            caches=caches,
            dataloader=dataloader,
            postprocess=None,
            model_args={},
            shown=False,
        )
        side = session.teacher
        assert side is not None
        pair.to(accelerator.device)
        stack.enter_context(modes(evaluating=pair))
        stack.enter_context(pair.hooked())
        stack.enter_context(side.hooked(pair.objective))
        for batch in islice(session.dataloader, count):
            parts = split(batch if session.postprocess is None else session.postprocess(batch))
            given, own, cache = (
                to_device(one, accelerator.device) for one in (parts.teacher, parts.student, parts.cache)
            )
            with torch.no_grad(), accelerator.autocast():
                yield pair.outputs(own, {}), side(given, {}, cache)


def _prepared(
    stack: ExitStack,
    pair: TrainingModule,
    teacher: TeacherSide,
    config: TrainingConfig,
    *,
    caches: Caches,
    dataloader: Iterable[Any],
    postprocess: Callable[[Any], Any] | None,
    model_args: Mapping[str, Any],
    shown: bool,
) -> tuple[CacheSession, Accelerator]:
    """Set up the process, the frozen teacher and its caches until ``stack`` closes, and build projections."""
    precision = config.precision if "precision" in config.model_fields_set else None
    accelerator = stack.enter_context(process(config.device, precision))
    stack.enter_context(busy("Preparing the teacher cache", shown=shown and accelerator.is_main_process))
    if config.seed is not None:
        set_seed(config.seed, device_specific=True)
    stack.enter_context(modes(evaluating=teacher.model))
    stack.enter_context(teacher.frozen())
    teacher.to(accelerator.device)
    example_ids = ExampleIds(pair.objective, dataloader, postprocess)
    session = CacheSession(caches, teacher, dataloader, postprocess, model_args, example_ids=example_ids)
    session.open(accelerator)
    side, prepare = session.teacher, session.postprocess
    assert side is not None
    session.check(pair.objective)
    if pair.objective.needs_materialize:
        pair.to(accelerator.device)
        with pair.hooked(), side.hooked(pair.objective):
            first = next(iter(session.dataloader))
            batch = first if prepare is None else prepare(first)
            count = example_ids.count_for(batch)
            materialize(pair, side, batch, model_args, accelerator.device, num_examples=count)
    return session, accelerator


def cache_identity(caches: Caches) -> dict[str, Any]:
    """Return a digest of the inputs of each teacher cache in a folder. Call it after the caches are filled."""
    by_task = {"": caches} if isinstance(caches, TeacherCache) else dict(caches or {})
    found = {}
    for task, cache in by_task.items():
        manifest = None if cache.path is None else CacheFolder(cache.path).manifest()
        found[task] = UNKNOWN if manifest is None else text_digest(manifest.fingerprint)
    return {"teacher_cache": found} if found else {}
