"""Where the command line writes."""

from __future__ import annotations

from rich.console import Console

_WIDE = 200


def console() -> Console:
    """Standard output; wide enough for every table where it is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=_WIDE)
