"""Files that can be read to an end."""

from __future__ import annotations

import stat
from pathlib import Path

NOT_REGULAR = "is a pipe, a socket or a device, and only regular files are read"


def is_special(path: Path) -> bool:
    """Whether ``path`` leads to a pipe, a socket or a device: opening or reading one may wait forever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # there is nothing, or nothing can have this name
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
