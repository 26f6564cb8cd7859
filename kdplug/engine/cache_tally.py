"""What coding and rounding left of the outputs that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Of ``positions`` that there were, ``items`` are kept: what a logits mask leaves out is not.

    ``mass`` is the sum over items of the teacher's probability on the classes that are kept, ``lowest`` the smallest of them;
    ``error`` the largest difference that rounding made.
    """

    positions: int = 0
    items: int = 0
    mass: float = 0.0
    lowest: float = 1.0
    error: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.positions + other.positions,
            self.items + other.items,
            self.mass + other.mass,
            min(self.lowest, other.lowest),
            max(self.error, other.error),
        )

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        return sum(tallies, cls())

    @property
    def kept_mass(self) -> float | None:
        """The mean over items."""
        return self.mass / self.items if self.items else None

    @property
    def coverage(self) -> float | None:
        """The share of positions that are kept."""
        return self.items / self.positions if self.positions else None


NOTHING = Tally()
"""What is left of no output at all."""
