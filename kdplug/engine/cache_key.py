"""Examples that carry their place in the data, so that what a teacher made of each can be found again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdplug.engine.cache_digest import digest
from kdplug.errors import RunError

_BATCH = 32


class Keyed(NamedTuple):
    """A batch with the place and the digest of each of its examples, in the order of its rows.

    Where batches are not made of examples that can be told apart, the whole batch is the one example.
    """

    keys: tuple[int, ...]
    digests: tuple[int, ...]
    batch: Any


class Source(Protocol):
    """Data in which each example has a place. ``is_whole`` says that an example is a whole batch."""

    count: int
    batch_size: int
    is_whole: bool

    @property
    def loader(self) -> Iterable[Keyed]:
        """The user's loader: the same batches in the same order from the same random numbers, each with its keys."""

    def read(self, groups: Sequence[Sequence[int]], *, alone: bool = False) -> Iterator[Keyed]:
        """Batches of the examples at these places; ``alone`` reads them in this process."""


def source_of(loader: Iterable[Any]) -> Source:
    """The data behind ``loader``.

    Raises: ``RunError`` for data in which examples have no fixed place: an ``IterableDataset``, a generator, a loader that
    accelerate has divided already.
    """
    if isinstance(loader, (list, tuple)):
        return Batches(loader)
    if getattr(loader, "_is_accelerate_prepared", False):
        raise RunError(
            "is_caching_logits needs the DataLoader from before accelerate.prepare; the run divides it itself"
        )
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        kind = type(loader.dataset if isinstance(loader, DataLoader) else loader).__name__
        raise RunError(
            f"is_caching_logits needs examples that can be found again by their place, and a {kind} has none. Pass a DataLoader "
            "over a dataset with __getitem__ and __len__, or a list of batches"
        )
    return Examples(loader)


class Batches:
    """A list of batches, each cached whole: they come in the same order in every pass."""

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
    """A ``DataLoader`` over a dataset whose examples have places."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self.is_whole = loader.batch_sampler is None
        self.batch_size = 1 if self.is_whole else _batch_size(loader)
        try:
            self.count = len(cast("Any", loader.dataset))
        except TypeError:
            raise RunError(
                f"is_caching_logits needs a dataset with a length, and {type(loader.dataset).__name__} has no __len__"
            ) from None
        if isinstance(loader.sampler, torch.utils.data.BatchSampler):
            raise RunError(
                "is_caching_logits needs a sampler of single examples; pass the BatchSampler as batch_sampler, with __getitem__ "
                "of the dataset giving one example"
            )
        self._dataset = KeyedDataset(loader.dataset)
        self._collate = KeyedCollate(loader.collate_fn, is_whole=self.is_whole)

    @property
    def loader(self) -> Iterable[Keyed]:
        copied = copy.copy(self._loader)
        # A DataLoader refuses to have its dataset set; one made anew would have lost its class and its sampler.
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
    """A dataset that gives each example with its place and digest. Everything else is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Any) -> tuple[int, int, Any]:
        return self._keyed(place, self.dataset[place])

    def __getitems__(self, places: list[Any]) -> list[tuple[int, int, Any]]:
        several = getattr(self.dataset, "__getitems__", None)
        items = several(places) if callable(several) else [self.dataset[place] for place in places]
        return [self._keyed(place, item) for place, item in zip(places, items, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # asked for while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _keyed(self, place: Any, item: Any) -> tuple[int, int, Any]:
        try:
            key = int(place)
        except (TypeError, ValueError):
            raise RunError(
                f"is_caching_logits needs whole numbers as the places of examples; the sampler gave {place!r}"
            ) from None
        return key if key >= 0 else key + len(self.dataset), digest(item), item


class KeyedCollate:
    """The user's collate function on the examples, beside their keys."""

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
