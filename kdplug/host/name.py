"""How names of entries and distributions are spelled and compared."""

from __future__ import annotations

import json
import re

_LONGEST = 120


def shown(value: object) -> str:
    """``repr(value)``, cut where it is long, and never an error of its own."""
    try:
        text = repr(value)
    except Exception:  # a foreign __repr__, or an integer too long to print
        return f"something of type {type(value).__name__}"
    return cut(text)


def cut(text: str) -> str:
    """``text``, cut where it is long."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_ENTRY = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE | re.ASCII)
_DISTRIBUTION = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"[-_.]+")


def is_entry_name(name: str) -> bool:
    """Whether ``name`` may name an entry."""
    return _ENTRY.fullmatch(name) is not None


def is_distribution_name(name: str) -> bool:
    """Whether an installer accepts ``name`` as that of a distribution."""
    return _DISTRIBUTION.fullmatch(name) is not None


def printable(text: str) -> str:
    """``text``, which may be JSON, with escapes in place of control characters: these could make a terminal hide lines."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else json.dumps(one)[1:-1] for one in text)


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
