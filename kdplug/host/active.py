"""The set of plugins in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kdplug.host.host import Host
from kdplug.host.metadata import Distribution, scan
from kdplug.host.switch import Switch

_active: list[Host] = []


def active() -> Host:
    """The host in force; the first call scans what is installed."""
    if not _active:
        _active.append(Host(scan(), Switch.from_environment()))
    return _active[-1]


@contextmanager
def isolated(dists: Iterable[Distribution] = (), switch: Switch | None = None) -> Iterator[Host]:
    """For the time of a ``with`` block, registries that see ``dists`` and nothing else."""
    host = Host(dists, switch)
    active()
    _active.append(host)
    try:
        yield host
    finally:
        _active.remove(host)
