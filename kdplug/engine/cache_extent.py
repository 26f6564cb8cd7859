"""How examples are divided among forward passes and shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

SHARD_BYTES = 64 << 20
SHARD_BATCHES = 128
"""A shard is written when it is as large as this, or holds so many batches: what an interruption may cost."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How the examples are divided: ``batch`` to a forward pass, ``batches`` of these to a shard."""

    count: int
    batch: int
    batches: int

    def __post_init__(self) -> None:
        if min(self.count, self.batch, self.batches) < 1:
            raise ValueError("counts must be positive")

    @classmethod
    def of(cls, count: int, batch: int, batch_bytes: int) -> Self:
        """``batch_bytes`` is what is kept of one forward pass."""
        return cls(count, batch, max(1, min(SHARD_BATCHES, SHARD_BYTES // max(1, batch_bytes))))

    @property
    def shard_size(self) -> int:
        return self.batch * self.batches

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def groups(self, shard: int) -> list[list[int]]:
        """The examples of each batch of a shard."""
        start, end = shard * self.shard_size, min((shard + 1) * self.shard_size, self.count)
        return [list(range(first, min(first + self.batch, end))) for first in range(start, end, self.batch)]
