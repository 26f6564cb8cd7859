"""Lock a folder while a run writes to it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdplug.errors import RunError

LOCK = ".lock"
"""The locked file, which names the host and the process of the run."""

_NOT_SUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_SHOWN = 200
_logger = logging.getLogger("kdplug")
_HELD: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked, since the system lets a process lock a file twice."""


@contextmanager
def in_use(folder: Path, *, is_main: bool = True) -> Iterator[None]:
    """Hold a lock on a file in ``folder`` inside the block. Only the main process takes the lock.

    The system releases the lock when the process ends, however it ends, so a killed run leaves no lock behind.

    Raises: ``RunError`` that names the host and the process of another run in ``folder``, or if the folder cannot be
    written.
    """
    if not is_main:
        yield
        return
    lock = folder.absolute() / LOCK
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(lock)
    except (OSError, ValueError) as error:  # ValueError: the name contains NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"cannot write to {str(lock.parent)!r}: {reason}", field="output_dir") from error
    key = _key(os.fstat(handle))
    _HELD.add(key)
    try:
        yield
    finally:
        _HELD.discard(key)
        if _is_at(lock, handle):
            lock.unlink()
        os.close(handle)


def _take(lock: Path) -> int:
    """Return the descriptor of the file at ``lock``, locked, with this process written to it."""
    if os.path.lexists(lock) and _key(lock.lstat()) in _HELD:  # opening and closing it here would release the lock
        raise _busy(lock, f"process {os.getpid()} on host {socket.gethostname()!r}")
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            _acquire(lock, handle)
            if _is_at(lock, handle):  # not deleted meanwhile by the run that held it
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _acquire(lock: Path, handle: int) -> None:
    """Lock the file for this process; unlike those of ``flock``, such a lock is not inherited by processes it forks."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _busy(lock, _holder(handle)) from error
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _logger.warning(
            "the file system of %s does not support file locks, so a second run in this folder would not be detected",
            lock.parent,
        )


def _busy(lock: Path, holder: str) -> RunError:
    return RunError(
        f"{str(lock.parent)!r} is in use by another run: {holder}. Choose another folder, or wait for that run to end",
        field="output_dir",
    )


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, _SHOWN, 0))
        return f"process {int(found['pid'])} on host {str(found['host'])!r}"
    except (OSError, ValueError, TypeError, KeyError):
        return "its process is unknown"


def _is_at(lock: Path, handle: int) -> bool:
    try:
        return _key(lock.lstat()) == _key(os.fstat(handle))
    except FileNotFoundError:
        return False


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
