"""A text as tokens of two tokenizers, and where it may be cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kdplug_tasks.text.alignment import Cut


class Half(NamedTuple):
    """One side's tokens: ids, for each whether it counts as something to predict, and the bytes of text that it completes."""

    ids: list[int]
    counts: list[bool]
    sizes: list[int]

    @property
    def is_something(self) -> bool:
        """Whether a token after the first one counts: the first is predicted from nothing."""
        return any(self.counts[1:])

    def part(self, start: int, end: int) -> Half:
        """The tokens from ``start`` to before ``end``."""
        return Half(self.ids[start:end], self.counts[start:end], self.sizes[start:end])


class Twin(NamedTuple):
    """The same text for both sides. ``cuts`` say where both have read the same of it; the last is the end of both."""

    student: Half
    teacher: Half
    cuts: list[Cut]

    @classmethod
    def empty(cls) -> Twin:
        """No text."""
        return cls(Half([], [], []), Half([], [], []), [])

    def extend(self, student: Half, teacher: Half, cuts: Iterable[Cut]) -> None:
        """The text that comes next. Where one side has no token for some of it, the later cut stands for both."""
        before = len(self.student.ids), len(self.teacher.ids)
        for one, more in ((self.student, student), (self.teacher, teacher)):
            one.ids.extend(more.ids)
            one.counts.extend(more.counts)
            one.sizes.extend(more.sizes)
        for own, theirs in cuts:
            cut = before[0] + own, before[1] + theirs
            if self.cuts and (cut[0] == self.cuts[-1][0] or cut[1] == self.cuts[-1][1]):
                self.cuts.pop()
            self.cuts.append(cut)

    @property
    def compared(self) -> list[Cut]:
        """The cuts after which both sides have a token to predict that counts: it is token ``i`` of the one, ``j`` of the other."""
        own, theirs = self.student.counts, self.teacher.counts
        inner = [(i, j) for i, j in self.cuts if 0 < i < len(own) and 0 < j < len(theirs)]
        return [(i, j) for i, j in inner if own[i] and theirs[j]]

    @property
    def is_something(self) -> bool:
        """Whether both sides have something to predict."""
        return self.student.is_something and self.teacher.is_something

    def part(self, first: int, last: int) -> Twin:
        """What lies between cut ``first`` and cut ``last``, counted from 0, the beginning."""
        (i, j), (k, m) = ((0, 0) if place == 0 else self.cuts[place - 1] for place in (first, last))
        inner = [(own - i, theirs - j) for own, theirs in self.cuts[first:last]]
        return Twin(self.student.part(i, k), self.teacher.part(j, m), inner)


def joined(twins: Iterable[Twin]) -> Twin:
    """All texts one after the other."""
    whole = Twin.empty()
    for twin in twins:
        whole.extend(*twin)
    return whole


def pieces(twin: Twin, length: int) -> Iterator[Twin]:
    """The text cut where both sides may be, into pieces of at most ``length`` tokens of either, each as long as can be.

    Raises: ``ValueError`` where the sides have nothing in common for longer than that.
    """
    first, start, end = 0, (0, 0), (0, 0)
    for place, cut in enumerate(twin.cuts):
        if _longer(start, cut) > length:
            if place > first:
                yield twin.part(first, place)
            first, start = place, end
            if _longer(start, cut) > length:
                raise ValueError(f"{_longer(start, cut)} tokens")
        end = cut
    if len(twin.cuts) > first:
        yield twin.part(first, len(twin.cuts))


def _longer(start: Cut, end: Cut) -> int:
    return max(end[0] - start[0], end[1] - start[1])
