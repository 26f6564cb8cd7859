"""What a teacher cache holds, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """``batches`` forward passes of the teacher took ``seconds``; 0 where everything was there.

    ``error`` is the largest difference between what the teacher returned and what is kept of it.
    """

    examples: int
    bytes: int
    batches: int
    seconds: float
    error: float
    path: Path | None

    @property
    def bytes_per_example(self) -> float:
        return self.bytes / self.examples

    def __str__(self) -> str:
        asked = (
            f"asked about {self.batches:,} batches in {self.seconds:.1f} s"
            if self.batches
            else "all there, nothing asked"
        )
        where = "in memory" if self.path is None else f"in {self.path}"
        kept = f"{self.examples:,} examples, {_size(self.bytes_per_example)} each, {_size(self.bytes)} {where}"
        return f"teacher cache: {asked}; {kept}" + (f"; largest rounding error {self.error:.2g}" if self.error else "")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
