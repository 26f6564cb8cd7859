"""Where two tokenisations of one text have read the same characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""The characters of a text that a token is of: the first, and the one after the last."""

Cut: TypeAlias = tuple[int, int]
"""How many tokens of the student, and of the teacher, hold the same text."""


def boundaries(spans: Sequence[Span], length: int) -> dict[int, int]:
    """How many tokens have been read, by the character up to which they have read everything and nothing beyond.

    A token that ends inside a character is no such place: bytes of it are still to come, in a token that begins before the
    end of this one. What follows the last token is white space, if anything, and counts as read. ``length`` is that of the text.
    """
    found = {}
    for count, (_, end) in enumerate(spans, 1):
        is_last = count == len(spans)
        if is_last or spans[count][0] >= end:
            found[length if is_last else end] = count
    return found


def cuts(student: Sequence[Span], teacher: Sequence[Span], length: int) -> list[Cut]:
    """All places at which both sides have read the same characters, the end of the text among them, in their order.

    Equal spans give ``(i, i)`` alone. The beginning, where neither side has read anything, is left out.
    """
    if not student or not teacher:
        return [(len(student), len(teacher))] if student or teacher else []
    own, theirs = boundaries(student, length), boundaries(teacher, length)
    return [(own[end], theirs[end]) for end in sorted(own.keys() & theirs.keys())]


def sizes(text: str, spans: Sequence[Span]) -> list[int]:
    """The bytes of the text, in UTF-8, that are complete with each token and were not before. White space between two tokens
    belongs to the latter.
    """
    found, before = [0] * len(spans), 0
    for end, count in boundaries(spans, len(text)).items():
        found[count - 1] = len(text[before:end].encode())
        before = end
    return found
