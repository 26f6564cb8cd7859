"""Lock a folder while a run writes into it."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

LOCK = ".lock"
"""The file that names the run at work in its folder."""

_logger = logging.getLogger("kdplug")
_HELD: set[Path] = set()
"""The locks that this process holds."""


@contextmanager
def in_use(folder: Path, *, is_main: bool = True) -> Iterator[None]:
    """Inside the block, ``folder`` holds a lock file with the host and the process of this run.

    A lock whose process no longer exists on this host is replaced. Only the main process locks.

    Raises: ``RunError`` that names the host and the process of a run that is at work in ``folder``, or if the folder
    cannot be written.
    """
    if not is_main:
        yield
        return
    lock = folder.absolute() / LOCK
    _take(lock)
    _HELD.add(lock)
    try:
        yield
    finally:
        _HELD.discard(lock)
        if _read(lock) == _own():
            lock.unlink(missing_ok=True)


def _take(lock: Path) -> None:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(lock):
            _check_stale(lock)
            lock.unlink(missing_ok=True)
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError as error:
        if not lock.parent.is_dir():
            raise _cannot_write(lock, error) from error
        raise _busy(lock, _read(lock)) from error
    except OSError as error:
        raise _cannot_write(lock, error) from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(_own(), file)


def _check_stale(lock: Path) -> None:
    """Raise ``RunError`` unless the process that wrote the lock is known to have ended."""
    found = _read(lock)
    pid = found.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        _logger.warning("replacing %s, which names no process", lock)
        return
    if found.get("host") != socket.gethostname():
        raise _busy(lock, found)
    if pid == os.getpid():
        if lock in _HELD:
            raise _busy(lock, found)
    elif _exists(pid) and found.get("started") in (None, _started(pid)):
        raise _busy(lock, found)
    _logger.warning("replacing %s of process %d, which no longer runs on this host", lock, pid)


def _busy(lock: Path, found: dict[str, Any]) -> RunError:
    return RunError(
        f"{str(lock.parent)!r} is in use by another run: process {found.get('pid', '?')} on host "
        f"{found.get('host', '?')!r}. Choose another folder, or wait for that run to end. If it no longer runs, delete "
        f"{str(lock)!r}",
        field="output_dir",
    )


def _cannot_write(lock: Path, error: OSError) -> RunError:
    return RunError(f"cannot write to {str(lock.parent)!r}: {error.strerror}", field="output_dir")


def _own() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _read(lock: Path) -> dict[str, Any]:
    """Return the content of a lock file, or nothing if it is missing or damaged."""
    try:
        found = read_json(lock) if lock.is_file() else None
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user
    return True


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, or ``None`` if unknown; process ids are reused."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
