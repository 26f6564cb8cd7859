"""Size of a teacher cache and cost of building it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdplug.engine.cache.shard import CodingStats


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """The teacher ran on ``batches`` batches in ``seconds``; both are 0 if the cache was complete.

    ``shared_bytes`` of ``bytes`` are stored once for all examples, such as the head of a ``hidden`` cache.
    ``tally`` holds coding and rounding statistics. ``coded`` is true if a codec encodes the logits.
    """

    examples: int
    bytes: int
    batches: int
    seconds: float
    tally: CodingStats
    path: Path | None
    coded: bool = False
    shared_bytes: int = 0

    @property
    def bytes_per_example(self) -> float:
        return (self.bytes - self.shared_bytes) / self.examples

    @property
    def error(self) -> float:
        """The largest difference between a value that the teacher returned and the stored one."""
        return self.tally.error

    @property
    def bytes_per_item(self) -> float | None:
        """Size per encoded item, without what is stored once."""
        return (self.bytes - self.shared_bytes) / self.tally.items if self.coded and self.tally.items else None

    def __str__(self) -> str:
        asked = (
            f"teacher ran on {self.batches:,} batches in {self.seconds:.1f} s"
            if self.batches
            else "complete; teacher not run"
        )
        where = "in memory" if self.path is None else f"in {self.path}"
        item = self.bytes_per_item
        each = f"{size(self.bytes_per_example)} each" + ("" if item is None else f" ({size(item)} per item)")
        once = f" and {size(self.shared_bytes)} once" if self.shared_bytes else ""
        kept = f"{self.examples:,} examples, {each}{once}, {size(self.bytes)} {where}"
        return f"teacher cache: {asked}; {kept}" + (f"; largest rounding error {self.error:.2g}" if self.error else "")


def size(count: float) -> str:
    """Format a number of bytes in a suitable unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
