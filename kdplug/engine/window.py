"""The loader as a stream of accumulation windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from kdplug.errors import RunError


class Windows:
    """Walks a loader pass by pass and yields its batches in windows, one window for each optimizer step.

    A window holds ``size`` batches; the last one of a pass holds what is left, so no batch is dropped.
    ``passes`` is ``None`` for a loader that is cycled; ``postprocess`` is applied to each batch once.
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
        self.epoch = 0

    def peek(self) -> Any:
        """The first batch, which the first window will still hold.

        Raises: ``RunError`` where the loader yields nothing.
        """
        started = self._start()
        for batch in started:
            self._first = chain([batch], started)
            return batch
        raise self._empty()

    def __iter__(self) -> Iterator[list[Any]]:
        """Raises: ``RunError`` where a pass yields nothing, instead of waiting for ever."""
        while self._passes is None or self.epoch < self._passes:
            batches, self._first = self._first or self._start(), None
            found = False
            while window := list(islice(batches, self._size)):
                found = True
                yield window
            if not found:
                raise self._empty()
            self.epoch += 1

    def _start(self) -> Iterator[Any]:
        set_epoch(self._loader, self.epoch)
        batches = iter(self._loader)
        return batches if self._postprocess is None else map(self._postprocess, batches)

    def _empty(self) -> RunError:
        if self.epoch == 0:
            return RunError("the dataloader is empty: its first pass yielded no batch")
        return RunError(
            f"the dataloader is exhausted: pass {self.epoch + 1} yielded no batch. It can be walked through only "
            "once (a generator?); pass one that can be started again, or ask for fewer steps."
        )


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the loader's samplers and dataset which pass this is, where they ask (``set_epoch``)."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (
        loader,
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(loader, "dataset", None),
    )
    for owner in {id(owner): owner for owner in owners if owner is not None}.values():
        tell = getattr(owner, "set_epoch", None)
        if callable(tell):
            tell(epoch)
