"""A text as tokens of two tokenizers, and where it may be cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from kdplug_tasks.text.alignment import Cut
from kdplug_tasks.text.document import is_begin

Begins: TypeAlias = tuple[list[int], list[int]]
"""What documents of the student and of the teacher begin with."""


class SideTokens(NamedTuple):
    """One side's tokens: ids, for each whether it counts as something to predict, and the bytes of text that it completes."""

    ids: list[int]
    counts: list[bool]
    sizes: list[int]

    @property
    def is_something(self) -> bool:
        """Whether a token after the first one counts: the first is predicted from nothing."""
        return any(self.counts[1:])

    def part(self, start: int, end: int) -> SideTokens:
        """The tokens from ``start`` to before ``end``."""
        return SideTokens(self.ids[start:end], self.counts[start:end], self.sizes[start:end])

    def going_on(self, begin: list[int]) -> SideTokens:
        """The same after ``begin``. Its first token does not count: what came before that is cut off."""
        counts = [False] * len(begin) + [False] * bool(self.counts) + self.counts[1:]
        return SideTokens([*begin, *self.ids], counts, [0] * len(begin) + self.sizes)


class DualTokens(NamedTuple):
    """The same text for both sides. ``cuts`` say where both have read the same of it; the last is the end of both."""

    student: SideTokens
    teacher: SideTokens
    cuts: list[Cut]

    @classmethod
    def empty(cls) -> DualTokens:
        """No text."""
        return cls(SideTokens([], [], []), SideTokens([], [], []), [])

    def extend(self, student: SideTokens, teacher: SideTokens, cuts: Iterable[Cut]) -> None:
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

    def part(self, first: int, last: int) -> DualTokens:
        """What lies between cut ``first`` and cut ``last``, counted from 0, the beginning."""
        (i, j), (k, m) = ((0, 0) if place == 0 else self.cuts[place - 1] for place in (first, last))
        inner = [(own - i, theirs - j) for own, theirs in self.cuts[first:last]]
        return DualTokens(self.student.part(i, k), self.teacher.part(j, m), inner)

    def going_on(self, begins: Begins) -> DualTokens:
        """The same after what each side's documents begin with."""
        own, theirs = begins
        cuts = [(i + len(own), j + len(theirs)) for i, j in self.cuts]
        return DualTokens(self.student.going_on(own), self.teacher.going_on(theirs), cuts)

    def is_begin(self, place: int, begins: Begins) -> bool:
        """Whether what lies between cut ``place`` and the next one is all that a document begins with."""
        return _steps(self.cuts[place - 1], self.cuts[place]) == tuple(map(len, begins)) and self.begins_at(
            place, begins
        )

    def begins_at(self, place: int, begins: Begins) -> bool:
        """Whether a document begins after cut ``place``, counted from 0, the beginning."""
        own, theirs = (0, 0) if place == 0 else self.cuts[place - 1]
        return is_begin(self.student.ids, self.student.counts, own, begins[0]) and is_begin(
            self.teacher.ids, self.teacher.counts, theirs, begins[1]
        )


def joined(duals: Iterable[DualTokens]) -> DualTokens:
    """All texts one after the other."""
    whole = DualTokens.empty()
    for dual in duals:
        whole.extend(*dual)
    return whole


def pieces(dual: DualTokens, length: int, begins: Begins = ([], [])) -> Iterator[DualTokens]:
    """The text cut where both sides may be, into pieces of at most ``length`` tokens of either, each as long as can be. Each begins
    with ``begins``, as each document does.

    Raises: ``ValueError`` where the sides have nothing in common for longer than that.
    """
    first, count = 0, len(dual.cuts)
    while first < count:
        goes_on = not dual.begins_at(first, begins)
        room = length - len(begins[0]) * goes_on, length - len(begins[1]) * goes_on
        start = (0, 0) if first == 0 else dual.cuts[first - 1]
        last = first
        while last < count and _fits(start, dual.cuts[last], room):
            last += 1
        if last == first:
            raise ValueError(f"{max(_steps(start, dual.cuts[first]))} tokens")
        if first + 1 < last < count and dual.is_begin(last - 1, begins):  # no piece ends with the begin of a document
            last -= 1
        piece = dual.part(first, last)
        yield piece.going_on(begins) if goes_on else piece
        first = last


def _fits(start: Cut, end: Cut, room: tuple[int, int]) -> bool:
    own, theirs = _steps(start, end)
    return own <= room[0] and theirs <= room[1]


def _steps(start: Cut, end: Cut) -> tuple[int, int]:
    return end[0] - start[0], end[1] - start[1]
