"""What a run is, so that it is resumed as itself or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdplug.errors import RunError

_MISSING = object()


def differences(saved: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each place where two trees of plain data differ, as ``path: saved -> now``."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in [*saved, *(key for key in now if key not in saved)]:
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(saved.get(key, _MISSING), now.get(key, _MISSING), inner)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for place, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from differences(one, other, f"{path}.{place}")
    elif saved != now:
        yield f"{path}: {_shown(saved)} -> {_shown(now)}"


def check_identity(saved: Any, now: Any, folder: object) -> None:
    """Raises: ``RunError`` that lists every difference between the run that wrote a checkpoint and this one."""
    found = list(differences(saved, now))
    if found:
        raise RunError(
            f"{folder} was written by another run. What differs (checkpoint -> now):\n    "
            + "\n    ".join(found)
            + "\nUndo the change, or say that it is meant: resume_changed=True (--resume-changed)"
        )


def _shown(value: Any) -> str:
    return "(not there)" if value is _MISSING else repr(value)
