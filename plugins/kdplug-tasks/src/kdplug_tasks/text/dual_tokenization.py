"""The tokens of a text from two tokenizers, with the positions at which the text may be split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from kdplug_tasks.text.alignment import Cut
from kdplug_tasks.text.document import UNKNOWN, is_begin

Begins: TypeAlias = tuple[list[int], list[int]]
"""Start tokens of the student's and the teacher's documents."""


class SideTokens(NamedTuple):
    """One side's tokens: ids and, for each, whether its prediction counts and how many bytes of text it completes.

    ``document`` is the number of the document that they are from.
    """

    ids: list[int]
    counts: list[bool]
    sizes: list[int]
    document: int = UNKNOWN

    @property
    def is_something(self) -> bool:
        """True if a token after the first counts; the first cannot be predicted."""
        return any(self.counts[1:])

    def part(self, start: int, end: int) -> SideTokens:
        """Return the tokens from ``start`` to ``end`` (exclusive)."""
        return SideTokens(self.ids[start:end], self.counts[start:end], self.sizes[start:end], self.document)

    def after_start(self, begin: list[int]) -> SideTokens:
        """Return these tokens after ``begin``. The first does not count, since its context was cut off."""
        counts = [False] * len(begin) + [False] * bool(self.counts) + self.counts[1:]
        return SideTokens([*begin, *self.ids], counts, [0] * len(begin) + self.sizes, self.document)


class DualTokens(NamedTuple):
    """The same text for both sides.

    ``cuts`` are the positions up to which both cover the same text; the last is the end.
    """

    student: SideTokens
    teacher: SideTokens
    cuts: list[Cut]

    @classmethod
    def empty(cls, document: int = UNKNOWN) -> DualTokens:
        """Return an empty text of a document."""
        return cls(SideTokens([], [], [], document), SideTokens([], [], [], document), [])

    def extend(self, student: SideTokens, teacher: SideTokens, cuts: Iterable[Cut]) -> None:
        """Append a text. If one side has no token between two cuts, only the later cut is kept."""
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
        """The cuts ``(i, j)`` at which the predictions of student token ``i`` and teacher token ``j`` both count."""
        own, theirs = self.student.counts, self.teacher.counts
        inner = [(i, j) for i, j in self.cuts if 0 < i < len(own) and 0 < j < len(theirs)]
        return [(i, j) for i, j in inner if own[i] and theirs[j]]

    @property
    def is_something(self) -> bool:
        """True if both sides have a token whose prediction counts."""
        return self.student.is_something and self.teacher.is_something

    def part(self, first: int, last: int) -> DualTokens:
        """Return the text between cuts ``first`` and ``last``; cut 0 is the start."""
        (i, j), (k, m) = ((0, 0) if place == 0 else self.cuts[place - 1] for place in (first, last))
        inner = [(own - i, theirs - j) for own, theirs in self.cuts[first:last]]
        return DualTokens(self.student.part(i, k), self.teacher.part(j, m), inner)

    def after_start(self, begins: Begins) -> DualTokens:
        """Return this text after each side's start tokens."""
        own, theirs = begins
        cuts = [(i + len(own), j + len(theirs)) for i, j in self.cuts]
        return DualTokens(self.student.after_start(own), self.teacher.after_start(theirs), cuts)

    def is_begin(self, place: int, begins: Begins) -> bool:
        """Return whether the text between cut ``place`` and the next is exactly the start tokens of a document."""
        return _steps(self.cuts[place - 1], self.cuts[place]) == tuple(map(len, begins)) and self.begins_at(
            place, begins
        )

    def begins_at(self, place: int, begins: Begins) -> bool:
        """Return whether a document begins after cut ``place``; cut 0 is the start."""
        own, theirs = (0, 0) if place == 0 else self.cuts[place - 1]
        return is_begin(self.student.ids, self.student.counts, own, begins[0]) and is_begin(
            self.teacher.ids, self.teacher.counts, theirs, begins[1]
        )


def joined(duals: Iterable[DualTokens]) -> DualTokens:
    """Return the concatenation of all texts."""
    whole = DualTokens.empty()
    for dual in duals:
        whole.extend(*dual)
    return whole


def pieces(dual: DualTokens, length: int, begins: Begins = ([], [])) -> Iterator[DualTokens]:
    """Cut the text at common boundaries into the longest pieces of at most ``length`` tokens on either side.

    Each piece begins with ``begins``, as each document does.

    Raises: ``ValueError`` if there is no common boundary within ``length`` tokens.
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
        if first + 1 < last < count and dual.is_begin(
            last - 1, begins
        ):  # no piece ends with the start tokens of a document
            last -= 1
        piece = dual.part(first, last)
        yield piece.after_start(begins) if goes_on else piece
        first = last


def _fits(start: Cut, end: Cut, room: tuple[int, int]) -> bool:
    own, theirs = _steps(start, end)
    return own <= room[0] and theirs <= room[1]


def _steps(start: Cut, end: Cut) -> tuple[int, int]:
    return end[0] - start[0], end[1] - start[1]
