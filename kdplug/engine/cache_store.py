"""What the teacher made of every example, found again by the example's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.engine.cache_content import Content, rebuild
from kdplug.engine.cache_fit import Padding, check_masked, fit, paddings
from kdplug.engine.cache_key import Keyed
from kdplug.engine.cache_layout import Layout, guides
from kdplug.engine.cache_shard import Shard
from kdplug.errors import RunError

GUIDE = "guide/"
"""What stands in front of the path of an input that is kept beside the outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Shards of ``shard_size`` examples each, the last one of what is left. ``is_whole``: an example is a whole batch."""

    layout: Layout
    shards: Sequence[Shard]
    shard_size: int
    is_whole: bool

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def recall(self, keyed: Keyed, inputs: Any) -> list[Outputs]:
        """The outputs of each teacher for a batch of which ``inputs`` is the teacher's part.

        Raises: ``RunError`` for an example that is another one than the teacher saw, or lies otherwise in its batch.
        """
        places = [self._find(key, mark) for key, mark in zip(keyed.keys, keyed.digests, strict=True)]
        tensors = self._whole(*places[0]) if self.is_whole else self._batch(places, keyed.keys, inputs)
        found = []
        for teacher, counts in enumerate(self.layout.counts):
            prefix = f"{teacher}/"
            own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            found.append(rebuild(Content(own, dict(counts))))
        return found

    def _find(self, key: int, mark: int) -> tuple[Shard, int]:
        place, row = divmod(key, self.shard_size)
        if place >= len(self.shards) or row >= len(self.shards[place].digests):
            raise RunError(f"the teacher saw no example {key}: the data have grown", field="is_caching_logits")
        shard = self.shards[place]
        if shard.digests[row] != mark:
            raise RunError(
                f"{'batch' if self.is_whole else 'example'} {key} is not what the teacher saw: the data changed, or they are drawn "
                "at random (augmentation), and then the teacher has to be asked anew each time: is_caching_logits: false",
                field="is_caching_logits",
            )
        return shard, row

    def _whole(self, shard: Shard, row: int) -> dict[str, Tensor]:
        return {
            name: self._restored(name, shard.columns[name].row(row))
            for name in self.layout.dtypes
            if name in shard.columns
        }

    def _batch(self, places: list[tuple[Shard, int]], keys: Sequence[int], inputs: Any) -> dict[str, Tensor]:
        kept = {path: [shard.columns[GUIDE + path].row(row) for shard, row in places] for path in self.layout.guides}
        now = guides(inputs) if kept else {}
        padded = paddings(kept, now, keys)
        found = {}
        for name in self.layout.dtypes:
            length = self.layout.lengths.get(name)
            if length is None:
                found[name] = self._restored(name, self._stacked(name, places))
                continue
            path = length.paths[0]
            ends = [
                Padding.START if Padding.START in one else Padding.END
                for one in zip(*(padded[p] for p in length.paths), strict=True)
            ]
            rows = [shard.columns[name].row(row) for shard, row in places]
            fitted = [fit(row, length, now[path].shape[1], end) for row, end in zip(rows, ends, strict=True)]
            if any(one is not row for one, row in zip(fitted, rows, strict=True)):
                check_masked(name, self.layout)
            found[name] = self._restored(name, torch.stack(fitted))
        return found

    def _stacked(self, name: str, places: list[tuple[Shard, int]]) -> Tensor:
        column = places[0][0].columns[name]
        if column.shapes is None and all(shard is places[0][0] for shard, _ in places):
            return column.values.index_select(0, torch.tensor([row for _, row in places]))
        rows = [shard.columns[name].row(row) for shard, row in places]
        if len({row.shape for row in rows}) > 1:
            shapes = sorted({tuple(row.shape) for row in rows})
            raise RunError(
                f"the teacher's {name.partition('/')[2]} differ in shape from example to example ({shapes[0]} and {shapes[-1]}), so "
                "they make no batch. Pad all examples to one length",
                field="is_caching_logits",
            )
        return torch.stack(rows)

    def _restored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.layout.dtype(name))
