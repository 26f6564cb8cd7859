"""Documents as runs of tokens, whole or packed into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Tokens(NamedTuple):
    """Ids, and for each whether it counts as something to predict."""

    ids: list[int]
    counts: list[bool]

    @property
    def is_something(self) -> bool:
        """Whether a token after the first one counts: the first is predicted from nothing."""
        return any(self.counts[1:])


def packed(documents: Iterable[Tokens], length: int) -> list[Tokens]:
    """All documents one after the other, cut into blocks of ``length``; the last block may be shorter.

    A block may hold the end of a document and the beginning of the next, and attention reaches from one into the other.
    """
    whole = Tokens([], [])
    for document in documents:
        whole.ids.extend(document.ids)
        whole.counts.extend(document.counts)
    return list(_cut(whole, length))


def divided(documents: Iterable[Tokens], length: int) -> list[Tokens]:
    """Each document on its own, cut into pieces of at most ``length``."""
    return [piece for document in documents for piece in _cut(document, length)]


def shortened(documents: Iterable[Tokens], length: int) -> list[Tokens]:
    """The first ``length`` tokens of each document, without those of which then nothing counts."""
    found = (Tokens(document.ids[:length], document.counts[:length]) for document in documents)
    return [document for document in found if document.is_something]


def _cut(document: Tokens, length: int) -> Iterator[Tokens]:
    for start in range(0, len(document.ids), length):
        piece = Tokens(document.ids[start : start + length], document.counts[start : start + length])
        if piece.is_something:
            yield piece
