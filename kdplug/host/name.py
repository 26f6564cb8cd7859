"""How names of entries and distributions are spelled and compared."""

from __future__ import annotations

import re

_ENTRY = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"[-_.]+")


def is_entry_name(name: str) -> bool:
    """Whether ``name`` may name an entry."""
    return _ENTRY.fullmatch(name) is not None


def fold(name: str) -> str:
    """The form in which entry names are compared: no case, ``-`` the same as ``_``."""
    return name.casefold().replace("-", "_")


def fold_distribution(name: str) -> str:
    """The form in which distribution names are compared (PEP 503)."""
    return _SEPARATORS.sub("-", name).lower()


def split_qualified(name: str) -> tuple[str, str]:
    """``("distribution", "entry")``, the first one empty in a bare name."""
    dist, _, entry = name.rpartition(":")
    return dist, entry
