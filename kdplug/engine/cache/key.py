"""Attach to each example its index in the data, by which its teacher outputs are stored and looked up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdplug.contracts.tree import opened
from kdplug.engine.hashing import digest
from kdplug.errors import RunError

_BATCH = 32


class Keyed(NamedTuple):
    """A batch with the index and digest of each of its examples, in row order.

    If batches do not consist of separate examples, the whole batch counts as one example.
    """

    keys: tuple[int, ...]
    digests: tuple[int, ...]
    batch: Any

    @property
    def ids(self) -> Tensor:
        """The indices as a tensor, for losses that request them."""
        return torch.tensor(self.keys, dtype=torch.int64)


class Source(Protocol):
    """Data with indexed examples. ``is_whole`` is true if an example is a whole batch."""

    count: int
    batch_size: int
    is_whole: bool

    @property
    def loader(self) -> Iterable[Keyed]:
        """Return the user's loader, with the same batches, order and random numbers, but keyed."""

    def read(self, groups: Sequence[Sequence[int]], *, alone: bool = False) -> Iterator[Keyed]:
        """Yield batches of the examples at these indices; ``alone`` reads them in this process."""


def source_of(loader: Iterable[Any]) -> Source:
    """Return the data behind ``loader``.

    Raises: ``RunError`` for data whose examples have no fixed index: an ``IterableDataset``, a generator, or a loader
    already divided by accelerate.
    """
    if isinstance(loader, (list, tuple)):
        return Batches(loader)
    if getattr(loader, "_is_accelerate_prepared", False):
        raise RunError(
            "is_caching_logits needs the original DataLoader, not the one that accelerate.prepare returned. Pass the "
            "original one: the run divides its batches among the processes"
        )
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        kind = type(loader.dataset if isinstance(loader, DataLoader) else loader).__name__
        raise RunError(
            f"is_caching_logits needs examples that can be looked up by index, which {kind} does not support. Pass a "
            "DataLoader over a dataset with __getitem__ and __len__, or a list of batches"
        )
    return Examples(loader)


class Batches:
    """A list of batches, each cached whole. They have the same order in every pass."""

    is_whole = True
    batch_size = 1

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches
        self.count = len(batches)

    @property
    def loader(self) -> Iterable[Keyed]:
        return self

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Keyed]:
        return self.read([[place] for place in range(self.count)])

    def read(self, groups: Sequence[Sequence[int]], *, alone: bool = False) -> Iterator[Keyed]:  # noqa: ARG002  read here anyway
        for (place,) in groups:
            batch = self._batches[place]
            yield Keyed((place,), (digest(batch),), batch)


class Examples:
    """A ``DataLoader`` over a dataset with indexed examples. ``hashes`` computes a digest of each."""

    def __init__(self, loader: DataLoader[Any], *, hashes: bool = True) -> None:
        self._loader = loader
        self.is_whole = loader.batch_sampler is None
        self.batch_size = 1 if self.is_whole else _batch_size(loader)
        try:
            self.count = len(cast("Any", loader.dataset))
        except TypeError:
            raise RunError(
                f"is_caching_logits needs a dataset with a length, and {type(loader.dataset).__name__} has no __len__. "
                "Define __len__, or set is_caching_logits to false"
            ) from None
        if isinstance(loader.sampler, torch.utils.data.BatchSampler):
            raise RunError(
                "is_caching_logits needs a sampler of single examples, and this one is a BatchSampler. Pass the "
                "BatchSampler as the DataLoader's batch_sampler, and let __getitem__ of the dataset return one example"
            )
        self._dataset = KeyedDataset(loader.dataset, hashes=hashes)
        self._collate = KeyedCollate(loader.collate_fn, is_whole=self.is_whole)

    @property
    def loader(self) -> Iterable[Keyed]:
        copied = copy.copy(self._loader)
        # A DataLoader does not allow its dataset to be replaced, and a new one would lose its class and its sampler.
        vars(copied).update(dataset=self._dataset, collate_fn=self._collate, _iterator=None)
        return cast("Iterable[Keyed]", copied)

    def read(self, groups: Sequence[Sequence[int]], *, alone: bool = False) -> Iterator[Keyed]:
        mine = self._loader
        workers: dict[str, Any] = {}
        if mine.num_workers and not alone:
            workers = {
                "num_workers": mine.num_workers,
                "prefetch_factor": mine.prefetch_factor,
                "multiprocessing_context": mine.multiprocessing_context,
                "timeout": mine.timeout,
            }
        order: dict[str, Any] = {"batch_sampler": groups}
        if self.is_whole:
            order = {"batch_size": None, "sampler": [place for group in groups for place in group]}
        found: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self._dataset),
            collate_fn=self._collate,
            worker_init_fn=mine.worker_init_fn,
            generator=torch.Generator(),
            **order,
            **workers,
        )
        return iter(found)


class KeyedDataset(Dataset[tuple[int, int, Any]]):
    """A dataset that returns each example with its index and digest, which is 0 unless ``hashes``.

    Everything else is delegated to the dataset.
    """

    def __init__(self, dataset: Any, *, hashes: bool = True) -> None:
        self.dataset = dataset
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Any) -> tuple[int, int, Any]:
        return self._keyed(place, self.dataset[place])

    def __getitems__(self, places: list[Any]) -> list[tuple[int, int, Any]]:
        several = getattr(self.dataset, "__getitems__", None)
        items = several(places) if callable(several) else [self.dataset[place] for place in places]
        return [self._keyed(place, item) for place, item in zip(places, items, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # looked up while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _keyed(self, place: Any, item: Any) -> tuple[int, int, Any]:
        try:
            key = index(place)  # int() would round 0.5 and read "7"
        except TypeError:
            needs = "is_caching_logits" if self.hashes else "a loss that requests example_ids"
            raise RunError(
                f"{needs} needs integer indices of examples, and the sampler returned {place!r}. Make the sampler return "
                "integers from 0 to len(dataset) - 1"
            ) from None
        return key if key >= 0 else key + len(self.dataset), digest(item) if self.hashes else 0, item


class KeyedCollate:
    """Applies the user's collate function to the examples, and keeps their keys."""

    def __init__(self, collate: Callable[[Any], Any], *, is_whole: bool) -> None:
        self.collate = collate
        self.is_whole = is_whole

    def __call__(self, items: Any) -> Keyed:
        if self.is_whole:
            key, mark, item = items
            return Keyed((key,), (mark,), self.collate(item))
        keys, marks, examples = zip(*items, strict=True)
        return Keyed(keys, marks, self.collate(list(examples)))


def _batch_size(loader: DataLoader[Any]) -> int:
    given = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return given if isinstance(given, int) and given > 0 else _BATCH


def check_repeatable(source: Source, inputs_of: Callable[[Any], Any]) -> None:
    """Check that examples and batches are repeatable: read the first examples twice, and in other orders.

    Raises: ``RunError`` if they differ (random augmentation, masking or mixing in the dataset, the collate function or
    the postprocessor), or if rows do not follow the examples (a collate function that sorts).
    """
    group = list(range(min(compared_size(source.batch_size), source.count)))
    first, again = (next(source.read([group], alone=True)) for _ in range(2))
    if first.digests != again.digests:
        place = next(key for key, one, other in zip(group, first.digests, again.digests, strict=True) if one != other)
        raise _random(f"reading example {place} twice gives two different results")
    inputs = inputs_of(first.batch)
    if digest(inputs) != digest(inputs_of(again.batch)):
        raise _random("the same examples give two different batches: collate_fn or batch_postprocessor is random")
    for order in () if source.is_whole else other_orders(len(group)):
        _check_order(order, inputs, inputs_of(next(source.read([[group[place] for place in order]], alone=True)).batch))


def compared_size(batch_size: int) -> int:
    """Return the number of examples to compare in other orders: with two, reversed rows would look right."""
    return batch_size if batch_size == 1 else max(3, batch_size)


def other_orders(count: int) -> list[list[int]]:
    """Return orders of a batch that together show whether row ``i`` is example ``i``.

    Of three or more rows, no arrangement but the right one follows both an exchange of the first two and a rotation;
    reversed rows, for instance, follow a reversal.
    """
    if count < 2:
        return []
    places = list(range(count))
    exchanged = [1, 0, *places[2:]]
    return [exchanged] if count == 2 else [exchanged, [*places[1:], 0]]


def _random(what: str) -> RunError:
    return RunError(
        f"{what}, so teacher outputs cannot be cached. Make the data deterministic, or set is_caching_logits to false",
        field="is_caching_logits",
    )


def _check_order(order: list[int], inputs: Any, other: Any) -> None:
    if not _is_reordered(inputs, other, order):
        raise RunError(
            "the rows of a batch do not follow its examples: when the same examples were collated in another order, the "
            "rows did not change their order accordingly. Make the collate_fn or batch_postprocessor keep all examples in "
            "order, or set is_caching_logits to false",
            field="is_caching_logits",
        )


def _is_reordered(one: Any, other: Any, order: list[int]) -> bool:
    count = len(order)
    if isinstance(one, Tensor):
        has_rows = one.dim() > 0 and len(one) == count  # one per example
        return not has_rows or (isinstance(other, Tensor) and one.shape == other.shape and _same(one[order], other))
    items, others = opened(one), opened(other)
    if isinstance(items, dict):
        if not isinstance(others, dict) or items.keys() != others.keys():
            return False
        return all(_is_reordered(inner, others[key], order) for key, inner in items.items())
    if isinstance(items, list) and isinstance(others, list):
        if len(items) == count and not any(isinstance(inner, Tensor) and len(inner.shape) for inner in items):
            return digest([items[place] for place in order]) == digest(others)
        return len(items) == len(others) and all(map(_is_reordered, items, others, [order] * len(items)))
    return items is None and others is None


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or digest(one) == digest(other)  # compares bits: nan != nan
