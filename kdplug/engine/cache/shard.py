"""The outputs for a run of neighbouring examples."""

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
    """Of ``positions`` that there were, ``items`` are kept: what a logits mask leaves out is not.

    ``mass`` is the sum over items of the teacher's probability on the classes that are kept, ``lowest`` the smallest of them;
    ``error`` the largest difference that rounding made.
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
        """The mean over items."""
        return self.mass / self.items if self.items else None

    @property
    def coverage(self) -> float | None:
        """The share of positions that are kept."""
        return self.items / self.positions if self.positions else None


NOTHING = CodingStats()
"""What is left of no output at all."""


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

    def check(self, name: str, examples: int) -> None:
        """Raises: ``ValueError`` where this is no column of so many examples."""
        if self.shapes is None:
            fits = self.values.dim() > 0 and len(self.values) == examples
        else:
            fits = len(self.shapes) == examples and bool((self.shapes >= 0).all()) and self.ends[-1] == len(self.values)
        if not fits:
            raise ValueError(f"{name} is no column of {examples} examples")

    def row(self, place: int) -> Tensor:
        """The tensor of one example, which shares memory with the column."""
        if self.shapes is None:
            return self.values[place]
        return self.values[self.ends[place] : self.ends[place + 1]].view(self.shapes[place].tolist())


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file whose content is mapped into memory, as it was when it was verified."""

    path: Path
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises: ``OSError``."""
        found = path.stat()
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns)

    def check(self) -> None:
        """Raises: ``RunError`` where the file was written to since.

        A file that was deleted, or replaced by another of its name, is still mapped as it was.
        """
        try:
            now = MappedFile.of(self.path)
        except OSError:
            return
        if now.inode == self.inode and now != self:
            raise RunError(
                f"{self.path} was changed while this run reads it. Start the run again; delete {self.path.stem}.json to run the "
                "teacher for this part again"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """The examples from ``start`` on: their digests, a column for each name, and what coding left of them.

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
        """The shard as tensors by name, fit for a file."""
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
        """The reverse of ``tensors``.

        Raises: ``KeyError``, ``ValueError`` for tensors that are not those of a shard.
        """
        digests, columns = tuple(tensors[_DIGESTS].tolist()), {}
        for name, values in tensors.items():
            if name.endswith((_SHAPES, _DIGESTS)):
                continue
            shapes = tensors.get(name + _SHAPES)
            columns[name] = Column(values) if shapes is None else Column.ragged(values, shapes)
            columns[name].check(name, len(digests))
        return cls(start, digests, columns, tally, source)
