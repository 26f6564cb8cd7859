"""The outputs for a run of neighbouring examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from kdplug.engine.cache_tally import NOTHING, Tally

_SHAPES = "#shapes"
_DIGESTS = "#digests"


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One tensor for each example. Where their shapes differ, ``values`` is flat and ``shapes`` says where each lies."""

    values: Tensor
    shapes: Tensor | None = None
    ends: tuple[int, ...] = ()

    @classmethod
    def join(cls, parts: Sequence[Tensor]) -> Self:
        """From the tensors of several batches, the examples first."""
        if len({part.shape[1:] for part in parts}) == 1:
            return cls(torch.cat(list(parts)))
        shapes = torch.tensor([part.shape[1:] for part in parts for _ in range(len(part))], dtype=torch.int64)
        return cls.ragged(torch.cat([part.reshape(-1) for part in parts]), shapes)

    @classmethod
    def ragged(cls, values: Tensor, shapes: Tensor) -> Self:
        return cls(values, shapes, tuple(accumulate(shapes.prod(1).tolist(), initial=0)))

    def row(self, place: int) -> Tensor:
        """The tensor of one example, which shares memory with the column."""
        if self.shapes is None:
            return self.values[place]
        return self.values[self.ends[place] : self.ends[place + 1]].view(self.shapes[place].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """The examples from ``start`` on: their digests, a column for each name, and what coding left of them."""

    start: int
    digests: tuple[int, ...]
    columns: Mapping[str, Column]
    tally: Tally = NOTHING

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The shard as tensors by name, fit for a file."""
        found = {_DIGESTS: torch.tensor(self.digests, dtype=torch.int64)}
        for name, column in self.columns.items():
            found[name] = column.values
            if column.shapes is not None:
                found[name + _SHAPES] = column.shapes
        return found

    @classmethod
    def from_tensors(cls, start: int, tensors: Mapping[str, Tensor], tally: Tally = NOTHING) -> Self:
        columns = {}
        for name, values in tensors.items():
            if name.endswith((_SHAPES, _DIGESTS)):
                continue
            shapes = tensors.get(name + _SHAPES)
            columns[name] = Column(values) if shapes is None else Column.ragged(values, shapes)
        return cls(start, tuple(tensors[_DIGESTS].tolist()), columns, tally)
