"""What a teacher cache holds, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdplug.engine.cache.shard import CodingStats


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """``batches`` forward passes of the teacher took ``seconds``; 0 where everything was there.

    ``tally`` says what is kept of the logits, and the largest error that rounding made; ``coded`` whether a codec keeps them.
    """

    examples: int
    bytes: int
    batches: int
    seconds: float
    tally: CodingStats
    path: Path | None
    coded: bool = False

    @property
    def bytes_per_example(self) -> float:
        return self.bytes / self.examples

    @property
    def error(self) -> float:
        """The largest difference between what the teacher returned and what is kept of it."""
        return self.tally.error

    @property
    def bytes_per_item(self) -> float | None:
        """Of each item whose logits a codec kept, everything that is kept counted in."""
        return self.bytes / self.tally.items if self.coded and self.tally.items else None

    def __str__(self) -> str:
        asked = (
            f"asked about {self.batches:,} batches in {self.seconds:.1f} s"
            if self.batches
            else "all there, nothing asked"
        )
        where = "in memory" if self.path is None else f"in {self.path}"
        item = self.bytes_per_item
        each = f"{size(self.bytes_per_example)} each" + ("" if item is None else f" ({size(item)} an item)")
        kept = f"{self.examples:,} examples, {each}, {size(self.bytes)} {where}"
        return f"teacher cache: {asked}; {kept}" + (f"; largest rounding error {self.error:.2g}" if self.error else "")


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
