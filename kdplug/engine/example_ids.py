"""The indices of examples in the data, for losses that request ``example_ids`` or ``num_examples``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from kdplug.contracts.outputs import Tagged
from kdplug.contracts.tree import opened
from kdplug.contracts.vocabulary import EXAMPLE_IDS
from kdplug.engine.cache.key import Examples, Keyed, compared_size, other_orders
from kdplug.engine.forward_state import random_state_kept
from kdplug.engine.hashing import digest
from kdplug.engine.multi_task import MultiTaskLoader
from kdplug.engine.training_module import split
from kdplug.errors import KdplugError, RunError, nearest
from kdplug.objective.example_ids import read_example_ids
from kdplug.objective.objective import Objective
from kdplug.objective.task_objective import TaskObjective

Postprocess = Callable[[Any], Any] | None


class ExampleIds:
    """The data of a run as losses that request ``example_ids`` or ``num_examples`` see them.

    Examples of a ``DataLoader`` over a dataset with ``__getitem__`` and ``__len__`` are numbered by their index in the
    dataset, whatever the order, the epoch, the process or the worker. Other data must give their batches a key
    ``example_ids``. A batch that has it keeps its own ids.

    Raises: ``RunError`` that names the term, if the number of examples is requested and unknown, or differs from the one
    that the loss was built for.
    """

    def __init__(
        self, objective: Objective | TaskObjective, dataloader: Iterable[Any], postprocess: Postprocess
    ) -> None:
        self._sources: dict[str, _Source] = {}
        if isinstance(objective, TaskObjective) and isinstance(dataloader, MultiTaskLoader):
            for task, loader in dataloader.loaders.items():
                try:
                    self._sources[task] = _Source(objective.of(task), loader, dataloader.postprocessors.get(task))
                except KdplugError as error:
                    raise error.at(task) from error.__cause__
        elif isinstance(objective, Objective):
            self._sources[""] = _Source(objective, dataloader, postprocess)

    @property
    def are_requested(self) -> bool:
        """Return whether a loss requests ``example_ids``."""
        return any(source.requests_ids for source in self._sources.values())

    def check_rows(self) -> None:
        """Check that the rows of a batch follow its examples, if they are numbered here; reads the first examples.

        Raises: ``RunError`` if they do not.
        """
        for task, source in self._sources.items():
            try:
                source.check_rows()
            except RunError as error:
                raise (error.at("dataloaders", task) if task else error) from error.__cause__

    def added_to(self, loader: Iterable[Any], postprocess: Postprocess) -> tuple[Iterable[Any], Postprocess]:
        """Return the loader and the postprocessor whose batches have ids. Both may be those of a teacher cache."""
        if not isinstance(loader, MultiTaskLoader):
            return self._sources[""].added_to(loader, postprocess) if "" in self._sources else (loader, postprocess)
        loaders, processors = dict(loader.loaders), dict(loader.postprocessors)
        for task, source in self._sources.items():
            loaders[task], found = source.added_to(loaders[task], processors.get(task))
            if found is not None:
                processors[task] = found
        return MultiTaskLoader(loaders, loader.shares, loader.seed, processors), postprocess

    def count_for(self, batch: Any) -> int | None:
        """Return the number of examples in the data of ``batch``, or ``None`` if unknown."""
        task = batch.task if isinstance(batch, Tagged) else ""
        return self._sources[task].count if task in self._sources else None


class _Source:
    """The data of one objective."""

    def __init__(self, objective: Objective, loader: Iterable[Any], postprocess: Postprocess) -> None:
        self._loader, self._postprocess = loader, postprocess
        self._requests = list(objective.configured.requesting(EXAMPLE_IDS))
        self.requests_ids = bool(self._requests)
        self._has_own = False
        self.count = data_length(loader)
        self._limit: int | None = None
        for who, place in objective.configured.requesting("num_examples"):
            with place.located():
                self._check_count(who, objective.num_examples)
            self._limit = self.count

    def _check_count(self, who: str, built: int | None) -> None:
        if self.count is None:
            raise RunError(
                f"{who} takes num_examples, but the number of examples of {_kind(self._loader)} is unknown. Pass a "
                "DataLoader over a dataset with a length (__len__)",
                field="loss",
            )
        if built is not None and built != self.count:
            raise RunError(
                f"{who} was built for num_examples={built}, but the data have {self.count} examples. Build a new "
                "distiller for other data",
                field="loss",
            )

    def check_rows(self) -> None:
        if self.requests_ids and not self._has_own and not _obstacle(self._loader):
            assert isinstance(self._loader, DataLoader)
            _check_rows(self._loader, self._postprocess)

    def added_to(self, loader: Iterable[Any], postprocess: Postprocess) -> tuple[Iterable[Any], Postprocess]:
        if not self.requests_ids:
            return loader, postprocess
        if loader is not self._loader or _obstacle(self._loader):  # a teacher cache has numbered them, or nothing can
            return loader, lambda batch: self._checked(batch if postprocess is None else postprocess(batch))
        assert isinstance(loader, DataLoader)
        return Examples(loader, hashes=False).loader, lambda keyed: self._numbered(keyed, postprocess)

    def _numbered(self, keyed: Keyed, postprocess: Postprocess) -> Any:
        batch = keyed.batch if postprocess is None else postprocess(keyed.batch)
        parts = split(batch)
        if parts.ids is not None:
            self._has_own = True
            return self._checked(batch)
        found = {"teacher": parts.teacher, "student": parts.student, EXAMPLE_IDS: keyed.ids}
        return found if parts.cache is None else {**found, "teacher_cache": parts.cache}

    def _checked(self, batch: Any) -> Any:
        """Return ``batch``. Raises: ``RunError`` if it has no ids; ``OutputsError`` for invalid ones."""
        ids = split(batch).ids
        if ids is None:
            who, place = self._requests[0]
            student = split(batch).student
            near = nearest(EXAMPLE_IDS, map(str, student)) if isinstance(student, Mapping) else None
            error = RunError(
                f"{who} requests example_ids, but {_obstacle(self._loader)}. Give each batch a key 'example_ids' with one "
                f"integer per example, its index in the data, the same in every epoch{f'; this one has {near!r}' if near else ''}",
                field="loss",
            )
            raise place.locate(error)
        if not isinstance(ids, Tensor) or ids.is_cpu:
            read_example_ids(ids, self._limit)
        return batch


def data_length(loader: Any) -> int | None:
    """Return the number of examples (not batches) in the data of a ``DataLoader``, or ``None`` if unknown."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:  # without one, each item is a batch
        return None
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def _kind(loader: Any) -> str:
    if not isinstance(loader, DataLoader):
        return f"a {type(loader).__name__}"
    if loader.batch_sampler is None:
        return "a DataLoader with batch_size=None, whose items are batches"
    return f"a DataLoader over a {type(loader.dataset).__name__}"


def _obstacle(loader: Any) -> str:
    """Return why the examples of ``loader`` cannot be numbered; empty if they can."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or data_length(loader) is None:
        return f"{_kind(loader)} does not provide the indices of its examples"
    if getattr(loader, "_is_accelerate_prepared", False):
        return "the DataLoader comes from accelerate.prepare, and only the original one provides the indices of its examples"
    if isinstance(loader.sampler, BatchSampler):
        return "the sampler of the DataLoader returns several indices at once"
    return ""


def _check_rows(loader: DataLoader[Any], postprocess: Postprocess) -> None:
    """Check that row ``i`` of a batch is its example ``i``: the same examples in another order must give its rows in that order.

    Rows that differ if the same examples are collated twice (random masking) are not compared.

    Raises: ``RunError`` if they do not follow the examples. Warns if no row could be compared.
    """
    with random_state_kept():
        items = _first_items(loader)
        if len(items) < 2:
            return
        change = copy.copy(postprocess)  # a postprocessor may count its batches

        def made(examples: list[Any]) -> list[Any]:
            batch = loader.collate_fn(copy.deepcopy(examples))
            parts = split(batch if change is None else change(batch))
            return [parts.student] if parts.student is parts.teacher else [parts.student, parts.teacher]

        first, again = made(items), made(items)
        orders = other_orders(len(items))
        others = [made([items[place] for place in order]) for order in orders]
    found = [
        follows
        for order, other in zip(orders, others, strict=True)
        for follows in _followed(first, again, other, order)
    ]
    if not all(found):
        raise RunError(
            "a loss requests example_ids, but the rows of a batch do not follow its examples: when the same examples were "
            "collated in another order, the rows did not change their order accordingly. Make the collate_fn or "
            "batch_postprocessor keep all examples in order, or make it return the id of each row under the batch key "
            "'example_ids'"
        )
    if not found:
        warnings.warn(
            "a loss requests example_ids, but kdplug could not check that row i of a batch is its example i. Make sure that "
            "collate_fn and batch_postprocessor do not sort, drop or mix examples, or let them return a batch key "
            "'example_ids'",
            stacklevel=2,
        )


def _first_items(loader: DataLoader[Any]) -> list[Any]:
    """Return the first examples; in a worker if the loader has workers, which must not inherit files that are opened here.

    The list is empty if they cannot be read by integers: the run itself raises that error.
    """
    count = min(len(loader.dataset), compared_size(loader.batch_size or 2))  # type: ignore[arg-type]
    workers: Mapping[str, Any] = {}
    if loader.num_workers:
        workers = {"num_workers": 1, "multiprocessing_context": loader.multiprocessing_context}
    reader: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_sampler=[list(range(count))],
        collate_fn=list,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
        **workers,
    )
    try:
        return next(iter(reader))
    except Exception:  # datasets without integer keys may raise any exception
        return []


def _followed(one: Any, again: Any, other: Any, order: list[int]) -> Iterator[bool]:
    """Yield, for each leaf with one row per example, whether ``other`` holds its rows in ``order``."""
    count = len(order)
    if isinstance(one, Tensor):
        if one.dim() and len(one) == count and isinstance(again, Tensor) and digest(one) == digest(again):
            yield isinstance(other, Tensor) and one.shape == other.shape and digest(one[order]) == digest(other)
        return
    items, repeated, others = opened(one), opened(again), opened(other)
    if isinstance(items, dict):
        for key, inner in items.items():
            second, third = (side.get(key) if isinstance(side, dict) else None for side in (repeated, others))
            yield from _followed(inner, second, third, order)
    elif isinstance(items, list):
        if len(items) == count and not any(isinstance(inner, Tensor) and inner.dim() for inner in items):
            if digest(items) == digest(repeated):
                yield digest([items[place] for place in order]) == digest(others)
        elif isinstance(repeated, list) and isinstance(others, list):
            for inner, second, third in zip(items, repeated, others, strict=False):
                yield from _followed(inner, second, third, order)
