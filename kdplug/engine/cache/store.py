"""Stored teacher outputs, looked up by example index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.engine.cache.coding import Coding, Reader, Shared
from kdplug.engine.cache.content import Content, rebuild
from kdplug.engine.cache.key import Keyed
from kdplug.engine.cache.layout import Layout, padding_signatures
from kdplug.engine.cache.repad import Repadding, paddings
from kdplug.engine.cache.shard import CodingStats, Shard
from kdplug.errors import KdplugError, RunError

PADDING_SIGNATURE = "guide/"
"""The prefix of columns that hold the padding signatures of an input, followed by its path."""

PARAMETERS = "parameters"
"""Part of the names of stored parameters and buffers, between the teacher's place and the path."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Shards of ``shard_size`` examples each; the last may be smaller. If ``is_whole``, an example is a whole batch.

    ``coding`` and ``shared`` decode coded heads.
    """

    layout: Layout
    shards: Sequence[Shard]
    shard_size: int
    is_whole: bool
    coding: Coding | None = None
    shared: Shared = field(default_factory=lambda: Shared({}))

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards) + self.shared_bytes

    @property
    def shared_bytes(self) -> int:
        """Bytes stored once for all examples."""
        return sum(one.nbytes for one in self.shared.tensors.values())

    @property
    def tally(self) -> CodingStats:
        return CodingStats.sum(shard.tally for shard in self.shards)

    def parameters(self, place: int, device: torch.device) -> dict[str, Tensor]:
        """Return the parameters and buffers of the teacher at ``place``, by path, on ``device``.

        Raises: ``RunError`` if one that the manifest names is missing.
        """
        prefix = f"{place}/{PARAMETERS}/"
        found = {}
        for name in self.layout.parameters:
            if name.startswith(prefix):
                if name not in self.shared.tensors:
                    raise RunError(f"the cache does not hold {name}, which its manifest names. Build the cache again")
                found[name.removeprefix(prefix)] = self.shared.tensors[name].to(device, copy=True)
        return found

    def recall(self, keyed: Keyed, inputs: Any, device: torch.device = _CPU) -> list[Outputs]:
        """Return each teacher's outputs for a batch with teacher part ``inputs``; coded heads decoded on ``device``.

        Raises: ``RunError`` for an example that differs from the one the teacher ran on or is arranged differently in
        its batch, and for tensors in a folder that do not match the manifest.
        """
        places = [self._find(key, mark) for key, mark in zip(keyed.keys, keyed.digests, strict=True)]
        used = (self.shared.source, *(shard.source for shard, _ in places))
        sources = {source for source in used if source is not None}
        with _reading(keyed.keys) if sources else nullcontext():
            fits = None if self.is_whole else self._repadding(places, keyed.keys, inputs)
            tensors = self._whole(*places[0]) if fits is None else self._batch(places, fits)
            tensors |= self._heads(places, fits, device)
        for source in sources:
            source.check()  # last, so that everything read before is verified
        found = []
        for teacher, counts in enumerate(self.layout.counts):
            prefix = f"{teacher}/"
            own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            found.append(rebuild(Content(own, dict(counts))))
        return found

    def _find(self, key: int, mark: int) -> tuple[Shard, int]:
        place, row = divmod(key, self.shard_size)
        if place >= len(self.shards) or row >= len(self.shards[place].digests):
            raise RunError(
                f"the cache has no example {key}: the dataset has grown. Build the cache again",
                field="is_caching_logits",
            )
        shard = self.shards[place]
        if shard.digests[row] != mark:
            raise RunError(
                f"{'batch' if self.is_whole else 'example'} {key} differs from the one the teacher ran on. If the data "
                "changed, build the cache again. If they are random (augmentation), set is_caching_logits to false, so that the "
                "teacher runs on every batch",
                field="is_caching_logits",
            )
        return shard, row

    def _whole(self, shard: Shard, row: int) -> dict[str, Tensor]:
        return {
            name: self._restored(name, shard.columns[name].row(row))
            for name in self.layout.dtypes
            if name in shard.columns
        }

    def _repadding(self, places: list[tuple[Shard, int]], keys: Sequence[int], inputs: Any) -> Repadding:
        kept = {
            path: [shard.columns[PADDING_SIGNATURE + path].row(row) for shard, row in places]
            for path in self.layout.padding_signatures
        }
        now = padding_signatures(inputs) if kept else {}
        return Repadding(self.layout, {path: one.shape[1] for path, one in now.items()}, paddings(kept, now, keys))

    def _batch(self, places: list[tuple[Shard, int]], fits: Repadding) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.layout.dtypes:
            if name not in self.layout.lengths:
                found[name] = self._restored(name, self._stacked(name, places))
                continue
            rows = [shard.columns[name].row(row) for shard, row in places]
            found[name] = self._restored(name, torch.stack(fits.fitted(name, rows)))
        return found

    def _heads(self, places: list[tuple[Shard, int]], fits: Repadding | None, device: torch.device) -> dict[str, Any]:
        """Return the logits of coded heads and their masks."""
        found: dict[str, Any] = {}
        for name, head in self.layout.heads.items():
            assert self.coding is not None
            reader = Reader(self.coding, name, head, self.shared)
            columns = reader.columns(places[0][0].columns)
            rows = [{column: shard.columns[column].row(row) for column in columns} for shard, row in places]
            numbers = reader.numbered(rows)
            if fits is not None:
                numbers = fits.fitted(name, numbers) if name in self.layout.lengths else _of_one_shape(name, numbers)
            laid_out = torch.stack(numbers) if fits is not None else numbers[0]
            found[name], mask = reader.decode(rows, laid_out, device)
            if head.masked:
                found[name.replace("logits/", "logits_mask/")] = mask
        return found

    def _stacked(self, name: str, places: list[tuple[Shard, int]]) -> Tensor:
        column = places[0][0].columns[name]
        if column.shapes is None and all(shard is places[0][0] for shard, _ in places):
            return column.values.index_select(0, torch.tensor([row for _, row in places]))
        return torch.stack(_of_one_shape(name, [shard.columns[name].row(row) for shard, row in places]))

    def _restored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.layout.dtype(name))


@contextmanager
def _reading(keys: Sequence[int]) -> Iterator[None]:
    """Convert errors from tensors that do not match the manifest, or from the codec, to ``RunError``."""
    try:
        yield
    except (KdplugError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"the cached outputs of examples {min(keys)} to {max(keys)} cannot be read: {type(error).__name__}: "
            f"{error}. Either they do not match the cache's manifest, or the codec has a bug. Delete the folder of "
            "the cache to run the teacher again",
            field="teacher_cache",
        ) from error


def _of_one_shape(name: str, rows: list[Tensor]) -> list[Tensor]:
    if len({row.shape for row in rows}) > 1:
        shapes = sorted({tuple(row.shape) for row in rows})
        raise RunError(
            f"the teacher's {name.partition('/')[2]} differ in shape between examples ({shapes[0]} and {shapes[-1]}), "
            "so they cannot form a batch. Pad all examples to one length",
            field="is_caching_logits",
        )
    return rows
