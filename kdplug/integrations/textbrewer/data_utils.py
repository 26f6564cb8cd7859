"""TextBrewer's augmentation of token lists. It uses NumPy's global generator, as TextBrewer does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["deleting", "long_disorder", "masking", "n_gram_sampling", "short_disorder"]

Token = TypeVar("Token")

_SWAPS = ((0, 1, 2), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))
"""Orders of the next tokens, indexed by the drawn number: abc, ba, cba, cab, bca."""


def masking(tokens: Sequence[Token], p: float = 0.1, mask: Token = "[MASK]") -> list[Token]:  # type: ignore[assignment]
    """Return a new list in which each token is ``mask`` with probability ``p``."""
    return [mask if np.random.rand() < p else token for token in tokens]


def deleting(tokens: Sequence[Token], p: float = 0.1) -> list[Token]:
    """Return a new list in which each token is deleted with probability ``p``."""
    kept = np.random.binomial(1, 1 - p, len(tokens))
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def n_gram_sampling(
    tokens: Sequence[Token], p_ng: Sequence[float] = (0.2,) * 5, l_ng: Sequence[int] = (1, 2, 3, 4, 5)
) -> Sequence[Token]:
    """Return a random span whose length is drawn from ``l_ng`` with probabilities ``p_ng``, at most the whole list."""
    length = min(int(np.random.choice(l_ng, p=p_ng)), len(tokens))
    start = int(np.random.randint(0, len(tokens) - length + 1))
    return tokens[start : start + length]


def short_disorder(tokens: Sequence[Token], p: Sequence[float] = (0.9, 0.1, 0, 0, 0)) -> list[Token]:
    """Return a new list with neighbours reordered: at each position tokens abc stay, or become bac, cba, cab or bca.

    ``p`` holds the five probabilities. The last two tokens can only be swapped.
    """
    outputs, place = list(tokens), 0
    while place < len(outputs) - 1:
        drawn = int(np.random.choice(5, p=p))
        if not drawn:
            place += 1
            continue
        order = _SWAPS[1] if place == len(outputs) - 2 else _SWAPS[drawn]
        outputs[place : place + len(order)] = [outputs[place + offset] for offset in order]
        place += len(order)
    return outputs


def long_disorder(tokens: Sequence[Token], p: float = 0.1, length: float = 20) -> list[Token]:
    """Return a new list in which each possible span has its halves swapped with probability ``p``.

    ``length`` is the span's length, rounded up to an even number; below 2 it is a fraction of the list's length.

    Raises: ``ValueError`` for a length that is not positive.
    """
    if length <= 0:
        raise ValueError(f"length must be positive, got {length!r}")
    outputs = list(tokens)
    half = (int(length if int(length) > 1 else len(outputs) * length) + 1) // 2
    place = 0
    while half and place <= len(outputs) - 2 * half:
        if np.random.rand() < p:
            middle, end = place + half, place + 2 * half
            outputs[place:end] = outputs[middle:end] + outputs[place:middle]
            place = end
        else:
            place += 1
    return outputs
