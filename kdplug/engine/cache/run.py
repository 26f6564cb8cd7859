"""Find or fill a teacher cache at the start of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from kdplug.config.training import TrainingConfig
from kdplug.engine.cache.builder import CacheBuilder, TeacherBatch
from kdplug.engine.cache.cache import TeacherCache
from kdplug.engine.cache.coding import Shared
from kdplug.engine.cache.content import RequiredOutputs
from kdplug.engine.cache.fingerprint import OF_THE_MODEL, changes, teacher_fingerprint
from kdplug.engine.cache.folder import TEACHER, CacheFolder, Manifest
from kdplug.engine.cache.key import check_repeatable, source_of
from kdplug.engine.cache.layout import Layout, ShardPlan
from kdplug.engine.cache.shard import Shard
from kdplug.engine.cache.store import PARAMETERS, Store
from kdplug.engine.cache.summary import CacheSummary
from kdplug.engine.cache.teacher import CachedTeacher
from kdplug.engine.forward_state import random_state_kept
from kdplug.engine.hashing import text_digest
from kdplug.engine.observe.activity import busy, counted
from kdplug.engine.parallel.process import process
from kdplug.engine.teacher import CacheOnlyTeacher, Teacher
from kdplug.engine.training_module import Adaptor
from kdplug.errors import RunError
from kdplug.objective.objective import Objective


class Objectives:
    """Several objectives whose layers are captured in one pass of the teacher."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives

    def connect(self, teacher: Any) -> None:
        """Resolve the teacher's paths in each objective."""
        for objective in self._objectives:
            objective.connect(teacher=teacher)

    def paths(self, side: Literal["student", "teacher"], place: int = 0) -> tuple[str, ...]:
        """Return the paths that any of them captures."""
        return tuple(dict.fromkeys(path for one in self._objectives for path in one.paths(side, place)))


class OpenCache:
    """A teacher cache opened for one run.

    Raises: ``RunError`` for an empty dataset, and for a damaged manifest.
    """

    def __init__(
        self, cache: TeacherCache, cached: CachedTeacher, model_args: Mapping[str, Any], accelerator: Accelerator
    ) -> None:
        self._cache = cache
        self._cached = cached
        self._source = cached.source
        self._model_args = model_args
        self._accelerator = accelerator
        self._folder = None if cache.path is None else CacheFolder(cache.path)
        self._manifest = None if self._folder is None else self._folder.manifest()
        if not self._source.count:
            raise RunError("the dataset is empty, so there is nothing to cache", field="is_caching_logits")
        batch = self._source.batch_size if self._manifest is None else self._manifest.extent.batch
        with random_state_kept():
            self._fingerprint = self._identify(batch)

    def find(self) -> None:
        """Load the stored outputs if they are complete.

        Raises: ``RunError`` that lists the differences if the folder was built from different inputs; ``RunError`` for
        a damaged shard.
        """
        cached, folder = self._cached, self._folder
        if folder is None:
            cached.store = self._cache.remembered(self._fingerprint)
        elif self._manifest is not None:
            self._check_fingerprint(self._manifest)
            if self._is_complete(folder, self._manifest):
                cached.store = self._load(folder, self._manifest)
        if cached.store is None and isinstance(cached.teacher, CacheOnlyTeacher):
            raise self._nobody_to_ask()
        self._accelerator.wait_for_everyone()

    def check(self, objective: Objective) -> None:
        """Check that the folder has the same fingerprint and holds what ``objective`` reads, as far as both are known.

        Raises: ``RunError`` that lists the differences; ``RunError`` for a folder that is neither a cache nor empty.
        """
        if self._folder is not None and self._manifest is None:
            self._folder.check_free()
        elif self._manifest is not None:
            self._check_fingerprint(self._manifest)
            self._check_held([replace(one, captured=()) for one in self._wanted(objective)])

    def check_read(self, objective: Objective) -> None:
        """Drop in-memory outputs that lack something that ``objective`` reads, before any are read.

        Raises: ``RunError`` if the folder lacks it.
        """
        self._check_held(self._wanted(objective))

    def fill(self, objective: Objective) -> None:
        """Run the teacher on every example without stored outputs, and store what ``objective`` reads.

        Its terms then read the teachers' parameters from the cache.

        Raises: ``RunError`` if the data cannot be cached, or the cache lacks outputs that the objective reads.
        """
        start = time.monotonic()
        wanted = self._wanted(objective)
        self._check_held(wanted)
        builder = self._builder(wanted)
        if self._cached.store is None:
            teacher = self._cached.teacher
            hooked = Objectives((objective, *self._cache.also))
            with busy("Caching teacher outputs"), random_state_kept(), teacher.hooked(hooked):  # type: ignore[arg-type]
                self._cached.store = self._asked(builder)
        store = self._cached.store
        for place, one in enumerate(wanted):
            if one.parameters:
                objective.connect_stored(place, store.parameters(place, self._accelerator.device))
        self._cache.summary = CacheSummary(
            self._source.count,
            store.bytes,
            builder.batches,
            time.monotonic() - start,
            store.tally,
            self._cache.path,
            self._cache.coding is not None,
            store.shared_bytes,
        )

    def _wanted(self, objective: Objective) -> list[RequiredOutputs]:
        objectives = (objective, *self._cache.also)
        return [
            RequiredOutputs.union(RequiredOutputs.of(one, place) for one in objectives)
            for place in range(len(self._cached.teachers))
        ]

    def _check_held(self, wanted: list[RequiredOutputs]) -> None:
        """Drop in-memory outputs that lack something the objective reads; raise an error if a folder lacks it."""
        if self._manifest is not None and (lacking := _lacking(wanted, self._manifest.layout)):
            raise RunError(
                f"the teacher cache {self._cache.path} lacks {', '.join(lacking)}, which the objective reads. Choose "
                "another folder, or delete this one to run the teacher again"
            )
        if self._cached.store is not None and _lacking(wanted, self._cached.store.layout):
            self._cached.store = None

    def _asked(self, builder: CacheBuilder) -> Store:
        check_repeatable(self._source, self._cached.inputs_of)
        if self._folder is None:
            return self._asked_in_memory(builder)
        folder, process = self._folder, self._accelerator
        first: TeacherBatch | None = None
        if process.is_main_process and (self._manifest is None or self._lacks_shared(folder, self._manifest)):
            first, layout, extent = self._begun(builder)
            if self._manifest is None:
                folder.begin(Manifest(extent, self._fingerprint, layout, bool(first.shared)))
            folder.write_shared(first.shared)
        process.wait_for_everyone()
        manifest = folder.manifest()
        assert manifest is not None
        extent, layout = manifest.extent, manifest.layout
        mine = [place for place in range(extent.shards) if place % process.num_processes == process.process_index]
        for place, shard in self._shards(builder, extent, layout, [one for one in mine if not folder.has(one)], first):
            folder.write(place, shard)
        process.wait_for_everyone()
        return self._load(folder, manifest)

    def _asked_in_memory(self, builder: CacheBuilder) -> Store:
        first, layout, extent = self._begun(builder)
        shards = [shard for _, shard in self._shards(builder, extent, layout, list(range(extent.shards)), first)]
        whole = self._source.is_whole
        store = Store(layout, shards, extent.shard_size, whole, self._cache.coding, Shared(first.shared))
        self._cache.remember(self._fingerprint, store)
        return store

    def _begun(self, builder: CacheBuilder) -> tuple[TeacherBatch, Layout, ShardPlan]:
        """Return the teacher outputs for the first batch, and the layout and shard plan derived from it."""
        batch = (
            min(self._source.batch_size, self._source.count) if self._manifest is None else self._manifest.extent.batch
        )
        first = builder.ask(next(self._source.read([list(range(batch))], alone=True)), shares=True)
        layout = builder.layout(first)
        if builder.reads_extras and batch > 1:
            smaller = builder.ask(next(self._source.read([list(range(batch - 1))], alone=True)))
            builder.check_sizes(first, smaller, layout)
        return first, layout, ShardPlan.of(self._source.count, batch, first.bytes)

    def _shards(
        self, builder: CacheBuilder, extent: ShardPlan, layout: Layout, places: list[int], first: TeacherBatch | None
    ) -> Iterator[tuple[int, Shard]]:
        """Yield the shards at ``places``; ``first`` holds the outputs for the very first batch, if known."""
        groups = {place: extent.groups(place) for place in places}
        skipped = first is not None and bool(places) and places[0] == 0
        reads = [group for place in places for group in groups[place]][int(skipped) :]
        batches = self._source.read(reads) if reads else iter(())
        with busy("Caching teacher outputs", total=sum(map(len, reads)), unit="examples") as activity:
            builder.finished = activity.add
            for place in places:
                answers = [first] if skipped and place == 0 and first is not None else []
                answers += [builder.ask(next(batches)) for _ in range(len(groups[place]) - len(answers))]
                yield place, builder.shard(place * extent.shard_size, answers, layout)

    def _load(self, folder: CacheFolder, manifest: Manifest) -> Store:
        extent = manifest.extent
        places = counted(range(extent.shards), "Reading the teacher cache", total=extent.shards, unit="shards")
        shards = [folder.read(place, place * extent.shard_size) for place in places]
        shared = folder.read_shared() if manifest.shared else Shared({})
        return Store(manifest.layout, shards, extent.shard_size, self._source.is_whole, self._cache.coding, shared)

    def _is_complete(self, folder: CacheFolder, manifest: Manifest) -> bool:
        return all(map(folder.has, range(manifest.extent.shards))) and not self._lacks_shared(folder, manifest)

    def _lacks_shared(self, folder: CacheFolder, manifest: Manifest) -> bool:
        return manifest.shared and not folder.has_shared()

    def _nobody_to_ask(self) -> RunError:
        if self._folder is None or self._manifest is None:
            return RunError(
                f"there is no teacher, and {self._cache.path} is not a teacher cache. Build one with kdplug cache, or "
                "pass the teacher",
                field="teacher_cache",
            )
        shards = self._manifest.extent.shards
        written = len(self._folder.written(shards))
        return RunError(
            f"there is no teacher, and the cache {self._cache.path} is incomplete: it holds {written} of {shards} "
            "shards. To complete it, rerun the command that started it",
            field="teacher_cache",
        )

    def _builder(self, wanted: list[RequiredOutputs]) -> CacheBuilder:
        process = self._accelerator
        return CacheBuilder(
            teacher=self._cached.teacher,
            models=[teacher.model for teacher in self._cached.teachers.values()],
            wanted=wanted,
            inputs_of=self._cached.inputs_of,
            model_args=self._model_args,
            device=process.device,
            precision=lambda: process.autocast() if process.native_amp else None,
            is_whole=self._source.is_whole,
            dtype=self._cache.dtype,
            coding=self._cache.coding,
        )

    def _identify(self, batch: int) -> dict[str, Any]:
        """Return the fingerprint of the outputs.

        Of the data, the teacher's inputs at both ends and in the middle are sampled.
        """
        count = self._source.count
        starts = sorted({0, count // 2 // batch * batch, (count - 1) // batch * batch})
        groups = [list(range(start, min(start + batch, count))) for start in starts]
        inputs = {
            f"examples {group[0]} to {group[-1]}": text_digest([keyed.digests, self._cached.inputs_of(keyed.batch)])
            for group, keyed in zip(groups, self._source.read(groups, alone=True), strict=True)
        }
        return {
            **teacher_fingerprint(self._cached.teachers),
            "examples": count,
            "inputs": inputs,
            "model_args": text_digest(dict(self._model_args)),
            "precision": self._accelerator.mixed_precision,
            "dtype": None if self._cache.dtype is None else str(self._cache.dtype).removeprefix("torch."),
            **({} if self._cache.coding is None else self._cache.coding.fingerprint()),
            **self._cache.about,
        }

    def _check_fingerprint(self, manifest: Manifest) -> None:
        saved = manifest.fingerprint
        if isinstance(self._cached.teacher, CacheOnlyTeacher):
            saved = {part: value for part, value in saved.items() if part not in OF_THE_MODEL}
        if found := changes(saved, self._fingerprint):
            raise RunError(
                f"the teacher cache {self._cache.path} was built from different inputs. Differences:\n    "
                + "\n    ".join(found)
                + "\nUndo the change, choose another folder, or delete this one to run the teacher again"
            )


def _lacking(wanted: list[RequiredOutputs], layout: Layout) -> list[str]:
    """Return the names of outputs that the objective reads and the cache does not hold."""
    found = []
    for place, one in enumerate(wanted):
        if place >= len(layout.counts):
            found.append(f"outputs of teacher {place}")
            continue
        held = {name.partition("/")[2] for name in layout.names if name.startswith(f"{place}/")}
        counts = layout.counts[place]
        names = one.names(counts) | {f"{PARAMETERS}/{path}" for path in one.parameters}
        keys = {"logits"} if one.logits and not any(name.startswith("logits/") for name in held) else set()
        keys |= {key for key, indices in one.layers.items() if indices and key not in counts}
        found += sorted({name for name in names if name not in held} | keys)
    return found


_OF_OUTPUTS = ("weights", "hooks")


def precheck(
    cache: TeacherCache,
    adaptor: Adaptor | None,
    objective: Objective,
    dataloader: Iterable[Any],
    config: TrainingConfig,
) -> None:
    """Check that the folder of ``cache``, if it exists, was built from this adaptor, data and ``cache.about``,
    and that it holds the layers that ``objective`` reads.

    Anything that needs the teacher or the run is checked later: the teacher's weights, examples other than those at
    both ends and in the middle of the data, and modules that are read by path.

    Raises: ``RunError`` that lists the differences; ``RunError`` for data without indices, and for a damaged manifest.
    """
    precision = config.precision if "precision" in config.model_fields_set else None
    with process(config.device, precision) as accelerator:
        cached = CachedTeacher(CacheOnlyTeacher(adaptor), source_of(dataloader))
        OpenCache(cache, cached, {}, accelerator).check(objective)


def check_teacher(path: Path, model: nn.Module) -> None:
    """Check that ``model`` has the weights and hooks of the teacher that the cache in ``path``, if any, was built from.

    Raises: ``RunError`` that lists the differences; ``RunError`` for a damaged manifest.
    """
    manifest = CacheFolder(path).manifest()
    if manifest is None:
        return
    now = teacher_fingerprint({"teacher": Teacher(model)})
    kept, found = ({part: one[part] for part in _OF_OUTPUTS if part in one} for one in (manifest.fingerprint, now))
    if differing := changes(kept, found):
        raise RunError(
            f"the teacher is not the one that the cache {path} was built from. Differences:\n    "
            + "\n    ".join(differing)
            + f"\nRestore that teacher ({path / TEACHER}, if the recipe trains it), or delete {path} and build the "
            "cache again",
            field="teacher_cache",
        )
