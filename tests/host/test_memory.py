"""The memory that a process may still use."""

from __future__ import annotations

import pytest

from kdplug.host import memory
from kdplug.host.memory import available_memory, container_memory

GIB = 2**30
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")
V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")


def write(root, version, limit, used, cached=0):
    *names, key = version
    for name, text in zip(names, (limit, used, f"anon 7\n{key} {cached}"), strict=True):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"{text}\n")


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(("used", "cached", "left"), [(3, 0, 5), (7, 2, 3), (9, 0, 0)])
def test_a_container_has_what_its_limit_leaves_and_its_cached_files(tmp_path, version, used, cached, left):
    write(tmp_path, version, 8 * GIB, used * GIB, cached * GIB)
    assert container_memory(tmp_path) == left * GIB


def test_without_a_limit_the_memory_is_the_hosts(tmp_path, monkeypatch):
    assert container_memory(tmp_path) is None
    write(tmp_path, V2, "max", GIB)
    assert container_memory(tmp_path) is None
    monkeypatch.setattr(memory, "container_memory", lambda: None)
    assert available_memory() > 0


def test_the_smaller_of_host_and_container_counts(monkeypatch):
    for left, holds in ((1, lambda free: free == 1), (2**62, lambda free: free < 2**62)):
        monkeypatch.setattr(memory, "container_memory", lambda left=left: left)
        assert holds(available_memory())
