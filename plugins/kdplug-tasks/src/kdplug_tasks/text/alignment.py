"""Align two tokenizations of the same text by characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""The character range of a token: start and end (exclusive)."""

Cut: TypeAlias = tuple[int, int]
"""Numbers of student and teacher tokens that cover the same text."""


def boundaries(spans: Sequence[Span], length: int) -> dict[int, int]:
    """Return the number of tokens that cover exactly the text up to a character, by that character.

    The end of a token inside a character is not a boundary: the next token has the remaining bytes and begins before
    that end. Trailing whitespace after the last token counts as covered. ``length`` is the length of the text.
    """
    found = {}
    for count, (_, end) in enumerate(spans, 1):
        is_last = count == len(spans)
        if is_last or spans[count][0] >= end:
            found[length if is_last else end] = count
    return found


def cuts(student: Sequence[Span], teacher: Sequence[Span], length: int) -> list[Cut]:
    """Return all positions up to which both sides cover the same characters, in order, up to the end of the text.

    Equal spans give only ``(i, i)``. The start of the text is not included.
    """
    if not student or not teacher:
        return [(len(student), len(teacher))] if student or teacher else []
    own, theirs = boundaries(student, length), boundaries(teacher, length)
    return [(own[end], theirs[end]) for end in sorted(own.keys() & theirs.keys())]


def sizes(text: str, spans: Sequence[Span]) -> list[int]:
    """Return the UTF-8 bytes of text that each token completes. Whitespace between two tokens belongs to the second."""
    found, before = [0] * len(spans), 0
    for end, count in boundaries(spans, len(text)).items():
        found[count - 1] = len(text[before:end].encode())
        before = end
    return found
