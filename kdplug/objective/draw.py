"""Seeds for what losses draw at random."""

from __future__ import annotations

from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """A seed in the range of int64, derived from ``parts`` by hashing: different parts give unrelated seeds."""
    name = " ".join(map(str, parts))
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 1


class Draws:
    """The seeds of one batch. ``micro_batch`` tells the batches of one step apart, on all processes.

    Two batches that differ in either number have no seed in common, and the same batch of the same step always has the same
    ones. Nothing has to be saved for a resume.
    """

    __slots__ = ("_place", "micro_batch", "step")

    def __init__(self, step: int = 0, micro_batch: int = 0) -> None:
        self.step = step
        self.micro_batch = micro_batch
        self._place = 0

    def next(self) -> int:
        """The seed of the next draw, in the range of int64."""
        found = seed_of(self.step, self.micro_batch, self._place)
        self._place += 1
        return found
