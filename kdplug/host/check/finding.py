"""Findings of a plugin check, and source locations."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of one distribution.

    ``check`` names the check; ``where`` is a file, a folder or an entry point; ``fix`` is the command or edit that
    fixes it. An ``error`` makes an entry or a hook unusable, a ``warning`` does not.
    """

    dist: str
    check: str
    level: Level
    what: str
    where: str
    fix: str


def place_of_error(error: BaseException) -> str | None:
    """Return file and line of a plugin's source that raised ``error``, or ``None`` if it was not raised in a plugin."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not _is_machinery(one.filename)]
    own = [one for one in frames if Path(one.filename).is_relative_to(Path(frames[0].filename).parent)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _is_machinery(file: str) -> bool:
    return file.startswith("<") or "/kdplug/host/" in file.replace("\\", "/") or "importlib" in file
