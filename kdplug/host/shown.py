"""A value in a message."""

from __future__ import annotations

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
