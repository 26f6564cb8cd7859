"""The set of plugins in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kdplug.host.host import Host
from kdplug.host.metadata import Distribution, scan
from kdplug.host.switch import Switch

_active: list[Host] = []


def read_installed() -> None:
    """Scan what is installed, once. What is wrong with it is told by the first ``active``: the command line is ready then.

    Raises: ``PluginError`` where ``KDPLUG_PLUGINS`` makes no sense.
    """
    if not _active:
        _active.append(Host(scan(), Switch.from_environment()))


def active() -> Host:
    """The host in force; what is wrong with it is told once, and is an error each time under ``KDPLUG_STRICT=1``."""
    read_installed()
    _active[-1].tell()
    return _active[-1]


@contextmanager
def isolated(dists: Iterable[Distribution] = (), switch: Switch | None = None) -> Iterator[Host]:
    """For the time of a ``with`` block, registries that see ``dists`` and nothing else."""
    host = Host(dists, switch)
    host.tell()
    read_installed()
    _active.append(host)
    try:
        yield host
    finally:
        _active.remove(host)
