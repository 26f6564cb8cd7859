"""What installed distributions say about themselves. The only module that reads package metadata."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import importlib_metadata

from kdplug.host.bounded_json import json_value
from kdplug.host.name import fold_distribution

_PREFIX = "kdplug."
_ON_KDPLUG = re.compile(r"kdplug(?![\w.-])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One line of a distribution's ``entry_points.txt``."""

    group: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution that has kdplug entry points; ``requires`` are its requirements on kdplug itself."""

    name: str
    version: str
    entry_points: tuple[EntryPoint, ...]
    files: importlib_metadata.Distribution | None = field(default=None, compare=False, repr=False)
    requires: tuple[str, ...] = ()

    def _text(self, name: str) -> str | None:
        return self.files.read_text(name) if self.files is not None else None

    @property
    def direct_url(self) -> dict[str, Any]:
        """PEP 610's record of where it was installed from; empty where there is none."""
        text = self._text("direct_url.json")
        try:
            found = json_value(text) if text else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def editable(self) -> bool:
        return bool((self.direct_url.get("dir_info") or {}).get("editable", False))

    @property
    def commit(self) -> str | None:
        """The commit of a version-control checkout that it was installed from."""
        return (self.direct_url.get("vcs_info") or {}).get("commit_id")

    @property
    def record(self) -> str | None:
        """The text of ``RECORD``, which lists the hash of every installed file."""
        return self._text("RECORD")


def _head(text: str | None) -> tuple[str, str, tuple[str, ...]] | None:
    """Name, version and requirements on kdplug from a metadata file, ``None`` where it is empty or has no name."""
    name = version = ""
    requires = []
    for line in (text or "").splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        if key == "Name":
            name = value.strip()
        elif key == "Version":
            version = value.strip()
        elif key == "Requires-Dist" and _ON_KDPLUG.match(value.strip()):
            requires.append(value.strip())
    return (name, version, tuple(requires)) if name else None


def _entry_points(text: str) -> Iterator[EntryPoint]:
    """The kdplug entry points of an ``entry_points.txt``; a line that cannot be read costs only itself."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group.startswith(_PREFIX) and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield EntryPoint(group, name.strip(), value.strip())


def _read(found: importlib_metadata.Distribution) -> Distribution | None:
    text = found.read_text("entry_points.txt")
    if not text or _PREFIX not in text:
        return None
    head = _head(found.read_text("METADATA") or found.read_text("PKG-INFO"))
    if head is None:
        return None
    name, version, requires = head
    points = tuple(_entry_points(text))
    return Distribution(name, version, points, found, requires) if points else None


def scan(path: list[str] | None = None) -> list[Distribution]:
    """Every installed distribution with kdplug entry points, in one pass over ``path`` (``sys.path`` where it is ``None``).

    Of two distributions with one name the first on the path counts. A leftover ``dist-info`` without metadata, or one
    that names nobody, hides nothing.
    """
    seen: dict[str, Distribution] = {}
    for dist in _usable(importlib_metadata.distributions(path=sys.path if path is None else path)):
        seen.setdefault(fold_distribution(dist.name), dist)
    return [seen[name] for name in sorted(seen)]


def _usable(found: Iterable[Any]) -> Iterator[Distribution]:
    for one in found:
        try:
            dist = _read(one)
        except (OSError, UnicodeDecodeError, ValueError):
            continue
        if dist is not None:
            yield dist


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, ``None`` where it is not installed."""
    try:
        return importlib_metadata.version(name)
    except importlib_metadata.PackageNotFoundError:
        return None
