"""Spans out of tags, and how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_BEGINS, _ENDS = ("B", "S", "U"), ("E", "L", "S", "U")


class Span(NamedTuple):
    """Words ``start`` to ``end``, the last one included, of a kind."""

    kind: str
    start: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans that tags in IOB1, IOB2, BIOES or BILOU mean, as the CoNLL-2000 evaluation reads them.

    A tag that should not stand where it does begins a span of its own: ``I-PER`` after ``O`` or after ``I-LOC``.

    Source: Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 Shared Task: Chunking", ``conlleval``.
    """
    found: list[Span] = []
    begun: tuple[str, int] | None = None
    before = ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        is_inside = mark not in ("O", *_BEGINS) and before[0] not in ("O", *_ENDS) and before[1] == kind
        if begun is not None and not is_inside:
            found.append(Span(begun[0], begun[1], place - 1))
            begun = None
        if mark != "O" and begun is None:
            begun = (kind, place)
        before = (mark, kind)
    return found


def has_spans(tags: Sequence[str]) -> bool:
    """Whether tags are of such a scheme: ``O``, and marks before kinds."""
    marked = [tag for tag in tags if tag != "O"]
    return "O" in tags and bool(marked) and all(tag[:2] in _PREFIXES and len(tag) > 2 for tag in marked)


_PREFIXES = tuple(f"{mark}-" for mark in "BIESLU")


def span_scores(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of the spans of all sentences together; 0 where there is nothing to divide by."""
    right = predicted = expected = 0
    for one, other in zip(true, found, strict=True):
        mine, theirs = set(spans(one)), set(spans(other))
        right, predicted, expected = right + len(mine & theirs), predicted + len(theirs), expected + len(mine)
    precision, recall = right / max(predicted, 1), right / max(expected, 1)
    total = predicted + expected
    return {"f1": 2 * right / total if total else 0.0, "precision": precision, "recall": recall}
