"""Determine how much more memory this process may use."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_memory() -> int:
    """Return the bytes that are free on the host, or within the memory limit of the container if that is less."""
    of_host = int(psutil.virtual_memory().available)
    of_container = container_memory()
    return of_host if of_container is None else min(of_host, of_container)


_MEMORY_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Files of control groups, version 2 and 1: limit, usage, and the key for cached files, which count as free memory."""


def container_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes left below the memory limit of the container, or ``None`` if it has no limit."""
    for limit, used, stat, cached in _MEMORY_LIMITS:
        try:
            left = int((root / limit).read_text()) - int((root / used).read_text())
            counts = dict(line.split() for line in (root / stat).read_text().splitlines())
        except (OSError, ValueError):  # the other version, or "max"
            continue
        return max(0, left + int(counts.get(cached, 0)))
    return None
