"""Detect paths that cannot be read as a file or folder: pipes, sockets, devices and broken links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

NOT_REGULAR = "is a pipe, a socket or a device, but only regular files can be read"


def is_special(path: Path) -> bool:
    """Return whether ``path`` is a pipe, a socket or a device, which may block forever when opened or read."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # no such file, or not a valid name
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_broken_link(path: Path) -> bool:
    """Return whether ``path`` is a link to nothing, or a loop of links."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114  Path raises for a name too long
