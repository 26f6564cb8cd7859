"""Turn documents into token sequences, whole or packed into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

UNKNOWN = -1
"""The number of a document that is unknown, or of several documents."""


class Tokens(NamedTuple):
    """Token ids, for each whether its prediction counts, and the number of the document that they are from."""

    ids: list[int]
    counts: list[bool]
    document: int = UNKNOWN

    @property
    def is_something(self) -> bool:
        """True if a token after the first counts; the first cannot be predicted."""
        return any(self.counts[1:])


def packed(documents: Iterable[Tokens], length: int, begin: Sequence[int] = ()) -> list[Tokens]:
    """Concatenate all documents and cut them into blocks of at most ``length``.

    A block may contain the end of a document and the start of the next, and attention crosses between them. Each block
    begins with ``begin``, as each document does.
    """
    whole = Tokens([], [])
    for document in documents:
        whole.ids.extend(document.ids)
        whole.counts.extend(document.counts)
    return list(_cut(whole, length, list(begin)))


def divided(documents: Iterable[Tokens], length: int, begin: Sequence[int] = ()) -> list[Tokens]:
    """Cut each document into pieces of at most ``length``, each beginning with ``begin``."""
    return [piece for document in documents for piece in _cut(document, length, list(begin))]


def shortened(documents: Iterable[Tokens], length: int) -> list[Tokens]:
    """Return the first ``length`` tokens of each document, dropping documents in which no remaining token counts."""
    found = (Tokens(ids[:length], counts[:length], number) for ids, counts, number in documents)
    return [document for document in found if document.is_something]


def is_begin(ids: Sequence[int], counts: Sequence[bool], place: int, begin: Sequence[int]) -> bool:
    """Return whether a document begins at ``place``. Its start tokens do not count, unlike the same tokens in a text."""
    end = place + len(begin)
    return list(ids[place:end]) == list(begin) and not any(counts[place:end])


def _cut(document: Tokens, length: int, begin: list[int]) -> Iterator[Tokens]:
    """Yield pieces that all begin with ``begin``.

    In a piece that continues a text, the first token after ``begin`` does not count, since its context was cut off.
    """
    start = 0
    while start < len(document.ids):
        goes_on = not is_begin(document.ids, document.counts, start, begin)
        end = start + length - len(begin) * goes_on
        if end < len(document.ids):  # no piece ends with the start tokens of a document
            before = (
                end - back
                for back in range(1, len(begin) + 1)
                if is_begin(document.ids, document.counts, end - back, begin)
            )
            end = next((place for place in before if place > start), end)
        ids, counts = document.ids[start:end], document.counts[start:end]
        if goes_on:
            ids, counts = [*begin, *ids], [False] * (len(begin) + 1) + counts[1:]
        piece = Tokens(ids, counts, document.document)
        if piece.is_something:
            yield piece
        start = end
