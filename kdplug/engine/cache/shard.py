"""A shard of a teacher cache: the teacher's outputs for a range of consecutive examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from kdplug.errors import RunError


@dataclass(frozen=True, slots=True)
class CodingStats:
    """``items`` of ``positions`` are stored; those that a logits mask excludes are not.

    ``mass`` is the sum over items of the teacher's probability on the stored classes, and ``lowest`` their minimum.
    ``error`` is the largest rounding error.
    """

    positions: int = 0
    items: int = 0
    mass: float = 0.0
    lowest: float = 1.0
    error: float = 0.0

    def __add__(self, other: CodingStats) -> CodingStats:
        return CodingStats(
            self.positions + other.positions,
            self.items + other.items,
            self.mass + other.mass,
            min(self.lowest, other.lowest),
            max(self.error, other.error),
        )

    @classmethod
    def sum(cls, tallies: Iterable[CodingStats]) -> CodingStats:
        return sum(tallies, cls())

    @property
    def kept_mass(self) -> float | None:
        """The mean kept mass over items."""
        return self.mass / self.items if self.items else None

    @property
    def coverage(self) -> float | None:
        """The fraction of positions that are stored."""
        return self.items / self.positions if self.positions else None


NOTHING = CodingStats()
"""The statistics before any output is stored."""


_SHAPES = "#shapes"
_DIGESTS = "#digests"


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One tensor per example. If their shapes differ, ``values`` is flat and ``shapes`` holds the shape of each."""

    values: Tensor
    shapes: Tensor | None = None
    ends: tuple[int, ...] = ()

    @classmethod
    def join(cls, parts: Sequence[Tensor]) -> Self:
        """Build a column from the tensors of several batches, whose first dimension is the examples."""
        if len({part.shape[1:] for part in parts}) == 1:
            return cls(torch.cat(list(parts)))
        shapes = torch.tensor([part.shape[1:] for part in parts for _ in range(len(part))], dtype=torch.int64)
        return cls.ragged(torch.cat([part.reshape(-1) for part in parts]), shapes)

    @classmethod
    def ragged(cls, values: Tensor, shapes: Tensor) -> Self:
        return cls(values, shapes, tuple(accumulate(shapes.prod(1).tolist(), initial=0)))

    def check(self, name: str, examples: int) -> None:
        """Raise ``ValueError`` if this is not a column of ``examples`` examples."""
        if self.shapes is None:
            fits = self.values.dim() > 0 and len(self.values) == examples
        else:
            fits = len(self.shapes) == examples and bool((self.shapes >= 0).all()) and self.ends[-1] == len(self.values)
        if not fits:
            raise ValueError(f"{name} is not a column of {examples} examples")

    def row(self, place: int) -> Tensor:
        """Return the tensor of one example, which shares memory with the column."""
        if self.shapes is None:
            return self.values[place]
        return self.values[self.ends[place] : self.ends[place + 1]].view(self.shapes[place].tolist())


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A memory-mapped file, and its state when it was verified."""

    path: Path
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the file's current state. Raises: ``OSError``."""
        found = path.stat()
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns)

    def check(self) -> None:
        """Raise ``RunError`` if the file was written to since it was verified.

        After the file is deleted or replaced by another of the same name, the mapping still shows the verified content.
        """
        try:
            now = MappedFile.of(self.path)
        except OSError:
            return
        if now.inode == self.inode and now != self:
            raise RunError(
                f"{self.path} was changed while this run was reading it. Start the run again; delete "
                f"{self.path.stem}.json to run the teacher for this part again"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """The examples from index ``start``: their digests, a column for each name, and the coding statistics.

    ``source`` is the file that the columns are mapped from.
    """

    start: int
    digests: tuple[int, ...]
    columns: Mapping[str, Column]
    tally: CodingStats = NOTHING
    source: MappedFile | None = None

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the shard as tensors by name, for a safetensors file."""
        found = {_DIGESTS: torch.tensor(self.digests, dtype=torch.int64)}
        for name, column in self.columns.items():
            found[name] = column.values
            if column.shapes is not None:
                found[name + _SHAPES] = column.shapes
        return found

    @classmethod
    def from_tensors(
        cls, start: int, tensors: Mapping[str, Tensor], tally: CodingStats = NOTHING, source: MappedFile | None = None
    ) -> Self:
        """Build a shard from the result of ``tensors``.

        Raises: ``KeyError``, ``ValueError`` for tensors that do not form a shard.
        """
        digests, columns = tuple(tensors[_DIGESTS].tolist()), {}
        for name, values in tensors.items():
            if name.endswith((_SHAPES, _DIGESTS)):
                continue
            shapes = tensors.get(name + _SHAPES)
            columns[name] = Column(values) if shapes is None else Column.ragged(values, shapes)
            columns[name].check(name, len(digests))
        return cls(start, digests, columns, tally, source)
