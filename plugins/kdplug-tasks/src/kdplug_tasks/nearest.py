"""The nearest of several names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the choice most like ``name``, or the empty string where nothing is like it."""
    found = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""
