"""The batches of a loader, grouped by optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import torch

from kdplug.engine.forward_state import random_state, random_state_kept, restore_random_state
from kdplug.errors import RunError


@runtime_checkable
class Mixed(Protocol):
    """A stream that mixes several kinds of batches. It can show one of each kind and save its position."""

    @property
    def loaders(self) -> Mapping[str, Iterable[Any]]: ...

    def mark(self) -> dict[str, Any]: ...

    def rewind(self, mark: dict[str, Any]) -> None: ...

    def examples(self) -> list[Any]: ...

    def position(self) -> dict[str, Any]: ...

    def seek(self, position: dict[str, Any]) -> None: ...


class AccumulationBatches:
    """Iterates over a loader pass by pass and yields a list of batches (a window) for each optimizer step.

    A window holds ``size`` batches. The last window of a pass holds the remaining ones, so no batch is dropped.
    ``passes`` is ``None`` to cycle the loader without end. ``postprocess`` is applied to each batch once.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        size: int,
        passes: int | None = None,
        postprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        self._loader = loader
        self._size = size
        self._passes = passes
        self._postprocess = postprocess
        self._first: Iterator[Any] | None = None
        self._generators = generators(loader)
        self._start_state: dict[str, Any] | None = None
        self._had_workers = False
        self._taken = 0
        self._is_exhausted = False
        self.epoch = 0

    def peek(self) -> Any:
        """Return the first batch without consuming it.

        Raises: ``RunError`` if the loader yields nothing.
        """
        started = self._start()
        for batch in started:
            self._first = chain([batch], started)
            return batch
        raise self._empty()

    def examples(self) -> list[Any]:
        """Return example batches that together cover every term: the first batch, or the first batch of each task.

        They are not consumed.

        Raises: ``RunError`` if a loader yields nothing.
        """
        return self._loader.examples() if isinstance(self._loader, Mixed) else [self.peek()]

    def __iter__(self) -> Iterator[list[Any]]:
        """Raise ``RunError`` if a pass yields nothing, rather than looping forever."""
        while self._passes is None or self.epoch < self._passes:
            batches, self._first = self._first or self._start(), None
            while window := list(islice(batches, self._size)):
                self._taken += len(window)
                self._is_exhausted = len(window) < self._size
                yield window
            if not self._taken:
                raise self._empty()
            self.epoch += 1
            self._taken, self._is_exhausted = 0, False

    def position(self) -> dict[str, Any]:
        """Return the position: the pass, the number of batches taken, and the random state at its start and now."""
        return {
            "epoch": self.epoch,
            "batches": self._taken,
            "exhausted": self._is_exhausted,
            "start": self._start_state,
            "had_workers": self._had_workers,
            "now": random_state(self._generators),
            "mixed": self._loader.position() if isinstance(self._loader, Mixed) else None,
        }

    def seek(self, position: dict[str, Any]) -> None:
        """Move to the ``position`` saved by another stream over the same data, and restore the random state.

        The pass is started again from the saved random state, and the batches already taken are read and discarded.
        Shuffling, workers and random augmentation therefore yield exactly the same batches from there on. Only the random
        state of persistent workers after their first pass cannot be restored; the order of the examples can.

        Raises: ``RunError`` if the loader has fewer batches than were taken, or a different number of generators.
        """
        saved, own = len(position["now"]["generators"]), len(self._generators)
        if saved != own:
            raise RunError(
                f"the number of generators of the dataloader and its samplers is {saved} in the checkpoint and {own} in "
                "this run. "
                "Pass a generator to the DataLoader in both runs or in neither"
            )
        self.epoch = position["epoch"]
        if isinstance(self._loader, Mixed):
            self._loader.seek(position["mixed"])
        elif position["start"] is not None:
            _set_persistent_workers(self._loader, running=position.get("had_workers", False))
            restore_random_state(position["start"], self._generators)
            batches = self._raw()
            taken = sum(1 for _ in islice(batches, position["batches"]))
            if taken < position["batches"]:
                raise RunError(
                    f"the checkpoint was written after batch {position['batches']} of epoch {self.epoch + 1}, but the "
                    f"number of batches in the dataloader is now {taken}. Restore the data of that run, or start a new run "
                    "in another output_dir"
                )
            if position["exhausted"]:
                next(batches, None)
            self._first = self._mapped(batches)
        self._taken, self._is_exhausted = position["batches"], position["exhausted"]
        restore_random_state(position["now"], self._generators)

    def random_state_kept(self) -> AbstractContextManager[None]:
        """Restore the random state, that of the loader included, after a block."""
        return random_state_kept(self._generators)

    def check_repeatable(self) -> None:
        """Raise ``RunError`` if the data can be read only once, so that ``rewind`` would skip some."""
        loaders = self._loader.loaders.items() if isinstance(self._loader, Mixed) else [("", self._loader)]
        for task, loader in loaders:
            if isinstance(loader, Iterator):
                raise RunError(
                    f"the data are read before training and again in training, but a {type(loader).__name__} can be read only "
                    "once. Pass a DataLoader, or another iterable that starts again",
                    field=f"dataloaders.{task}" if task else "dataloader",
                )

    def mark(self) -> dict[str, Any]:
        """Return the state before the first step, for ``rewind``."""
        return {
            "start": self._start_state,
            "had_workers": self._had_workers if self._first is not None else _has_persistent_workers(self._loader),
            "now": random_state(self._generators),
            "mixed": self._loader.mark() if isinstance(self._loader, Mixed) else None,
        }

    def rewind(self, mark: dict[str, Any]) -> None:
        """Return to the state of ``mark``: the same first batches follow, with the same random state."""
        self.epoch, self._taken, self._is_exhausted, self._first = 0, 0, False, None
        if isinstance(self._loader, Mixed):
            self._loader.rewind(mark["mixed"])
        else:
            _set_persistent_workers(self._loader, running=mark["had_workers"])
            self._start_state = mark["start"]
            if mark["start"] is not None:
                restore_random_state(mark["start"], self._generators)
                self.peek()
        restore_random_state(mark["now"], self._generators)

    def _start(self) -> Iterator[Any]:
        return self._mapped(self._raw())

    def _raw(self) -> Iterator[Any]:
        self._start_state = random_state(self._generators)
        self._had_workers = _has_persistent_workers(self._loader)
        set_epoch(self._loader, self.epoch)
        return iter(self._loader)

    def _mapped(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches if self._postprocess is None else map(self._postprocess, batches)

    def _empty(self) -> RunError:
        if self.epoch == 0:
            return RunError("the dataloader is empty: its first epoch had no batch")
        return RunError(
            f"the dataloader is exhausted: epoch {self.epoch + 1} had no batch. It can be iterated only once "
            "(is it a generator?); pass one that can be iterated again, or train for fewer steps."
        )


def set_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` on the loader's samplers and dataset, if they have such a method."""
    owners = (*_samplers(loader), getattr(loader, "dataset", None))
    for owner in _distinct(owners):
        method = getattr(owner, "set_epoch", None)
        if callable(method):
            method(epoch)


def generators(loader: Any) -> tuple[torch.Generator, ...]:
    """Return the generators of the loader and its samplers, each once."""
    found = [getattr(owner, "generator", None) for owner in _distinct(_samplers(loader))]
    return tuple(_distinct(generator for generator in found if isinstance(generator, torch.Generator)))


def _has_persistent_workers(loader: Any) -> bool:
    return getattr(_owner(loader), "_iterator", None) is not None


def _set_persistent_workers(loader: Any, *, running: bool) -> None:
    """Start or stop the persistent workers of ``loader``.

    A pass that starts them draws their seed before the order of the examples, and a later pass does not.
    """
    if running and not _has_persistent_workers(loader):
        iter(loader)
    elif not running and _has_persistent_workers(loader):
        _owner(loader)._iterator = None  # noqa: SLF001  torch has no public way to stop them


def _owner(loader: Any) -> Any:
    """Return the loader that holds the workers: accelerate wraps it."""
    return getattr(loader, "base_dataloader", loader)


def _samplers(loader: Any) -> tuple[Any, ...]:
    """Return the loader and its samplers; accelerate wraps the batch sampler of a loader that it divides."""
    found, batch_sampler = [loader, getattr(loader, "sampler", None)], getattr(loader, "batch_sampler", None)
    while batch_sampler is not None:
        found += [batch_sampler, getattr(batch_sampler, "sampler", None)]
        batch_sampler = getattr(batch_sampler, "batch_sampler", None)
    return tuple(found)


def _distinct(owners: Iterable[Any]) -> list[Any]:
    return list({id(owner): owner for owner in owners if owner is not None}.values())
