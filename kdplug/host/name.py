"""Spelling, comparison and display of entry and distribution names."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

_LONGEST = 120


def shown(value: object) -> str:
    """Return ``repr(value)``, truncated if long; never raises."""
    try:
        text = repr(value)
    except Exception:  # a foreign __repr__, or an integer too long to print
        return f"something of type {type(value).__name__}"
    return cut(text)


def cut(text: str) -> str:
    """Return ``text``, truncated if long."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_ENTRY = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE | re.ASCII)
_DISTRIBUTION = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"[-_.]+")


def is_entry_name(name: str) -> bool:
    """Return whether ``name`` is a valid entry name."""
    return _ENTRY.fullmatch(name) is not None


def is_distribution_name(name: str) -> bool:
    """Return whether ``name`` is a valid distribution name."""
    return _DISTRIBUTION.fullmatch(name) is not None


def printable(text: str) -> str:
    """Escape control characters in ``text``, which may be JSON: they could make a terminal hide lines."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else json.dumps(one)[1:-1] for one in text)


def fold(name: str) -> str:
    """Normalize an entry name for comparison: case-folded, ``-`` replaced by ``_``."""
    return name.casefold().replace("-", "_")


def fold_distribution(name: str) -> str:
    """Normalize a distribution name for comparison (PEP 503)."""
    return _SEPARATORS.sub("-", name).lower()


def split_qualified(name: str) -> tuple[str, str]:
    """Split a name into distribution and entry; the distribution of a bare name is empty."""
    dist, _, entry = name.rpartition(":")
    return dist, entry


def place_of(target: Callable[..., Any]) -> str | None:
    """Return file and line where a callable is defined, or ``None`` if there is no source."""
    try:
        found: Any = inspect.unwrap(target)
        while isinstance(found, partial):
            found = found.func
        return f"{inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]}"
    except (OSError, TypeError, ValueError):
        return None
