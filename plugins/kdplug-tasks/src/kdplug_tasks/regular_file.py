"""Detect pipes, sockets and devices, which are not read."""

from __future__ import annotations

import stat
from pathlib import Path

NOT_REGULAR = "is a pipe, a socket or a device, and only regular files are read"


def is_special(path: Path) -> bool:
    """Return whether ``path`` is a pipe, a socket or a device, which may block forever when opened or read."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # no such file, or not a valid name
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
