"""Metadata of installed distributions. No other module reads package metadata."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import importlib_metadata
from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement

from kdplug.contracts.version import VERSION
from kdplug.errors import nearest
from kdplug.host.bounded_json import json_value
from kdplug.host.name import fold_distribution, is_distribution_name, printable

T = TypeVar("T")

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
    """An installed distribution with kdplug entry points; ``requires`` are its requirements on kdplug itself.

    ``others`` are further installations on the path, each as version and folder; the first on the path is used.
    """

    name: str
    version: str
    entry_points: tuple[EntryPoint, ...]
    files: importlib_metadata.Distribution | None = field(default=None, compare=False, repr=False)
    requires: tuple[str, ...] = ()
    others: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def place(self) -> str:
        """Version and folder, for messages."""
        return _place(self.version, self.files)

    def _text(self, name: str) -> str | None:
        """Return the text of a metadata file, or ``None`` if it is missing or unreadable."""
        try:
            return self.files.read_text(name) if self.files is not None else None
        except (OSError, ValueError):
            return None

    def _origin(self, part: str) -> dict[str, Any]:
        """Return a part of the PEP 610 record (``direct_url.json``), or an empty one if it is missing."""
        text = self._text("direct_url.json")
        try:
            found = json_value(text)[part] if text else {}
        except (ValueError, TypeError, LookupError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def editable(self) -> bool:
        return bool(self._origin("dir_info").get("editable", False))

    @property
    def commit(self) -> str | None:
        """Commit of the version-control checkout from which it was installed."""
        commit = self._origin("vcs_info").get("commit_id")
        return commit if isinstance(commit, str) else None

    @property
    def record(self) -> str | None:
        """Text of ``RECORD``, which lists the hash of every installed file."""
        return self._text("RECORD")


def _head(text: str | None) -> tuple[str, str, tuple[str, ...]] | None:
    """Return name, version and requirements on kdplug from a metadata file, or ``None`` if it has no valid name."""
    name = version = ""
    requires = []
    for line in (text or "").splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        if key == "Name":
            name = value.strip()
        elif key == "Version":
            version = printable(value.strip())
        elif key == "Requires-Dist" and _ON_KDPLUG.match(value.strip()):
            requires.append(value.strip())
    return (name, version, tuple(requires)) if is_distribution_name(name) else None


def _entry_points(text: str) -> Iterator[EntryPoint]:
    """Yield the kdplug entry points of an ``entry_points.txt``; malformed lines are skipped."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group.startswith(_PREFIX) and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield EntryPoint(group, printable(name.strip()), printable(value.strip()))


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
    """Return every installed distribution with kdplug entry points, in one pass over ``path`` (default ``sys.path``).

    Of several distributions with the same name the first on the path is used, and ``others`` lists the rest. A leftover
    ``dist-info`` without metadata or without a name hides none of them.
    """
    seen: dict[str, list[Distribution]] = {}
    without_entries: list[Any] = []
    for found in importlib_metadata.distributions(path=sys.path if path is None else path):
        dist = _readable(_read, found)
        if dist is None:
            without_entries.append(found)
        else:
            seen.setdefault(fold_distribution(dist.name), []).append(dist)
    others = {
        name: [(one.version, one.files) for one in dists[1:] if _differs(dists[0], one)] for name, dists in seen.items()
    }
    for found in without_entries:
        name = _folder_name(found)
        version = _readable(_version, found) if name in others else None
        if version is not None and version != seen[name][0].version:
            others[name].append((version, found))
    return [_with_others(seen[name][0], others[name]) for name in sorted(seen)]


def undecodable() -> list[str]:
    """Return the ``entry_points.txt`` files on ``sys.path`` that are not UTF-8.

    Such a file breaks kdplug's own dependencies: torch and pydantic read the entry points of every distribution.
    """
    found = []
    for dist in importlib_metadata.distributions():
        try:
            dist.read_text("entry_points.txt")
        except UnicodeDecodeError:
            found.append(str(getattr(dist, "_path", dist)))
        except OSError:
            continue
    return found


def _readable(read: Callable[[Any], T], found: Any) -> T | None:
    try:
        return read(found)
    except (OSError, ValueError):
        return None


def _folder_name(found: Any) -> str:
    """Return the name in the name of the folder; ``found.name`` would read the metadata of every distribution."""
    folder = getattr(found, "_path", None)
    return "" if folder is None else fold_distribution(folder.stem.partition("-")[0])


def _version(found: Any) -> str | None:
    head = _head(found.read_text("METADATA") or found.read_text("PKG-INFO"))
    return None if head is None else head[1]


def _differs(first: Distribution, other: Distribution) -> bool:
    """Return whether ``other`` may hold other code or entries than ``first``.

    The ``egg-info`` of an editable project repeats its ``dist-info``; a path entry may occur twice.
    """
    if (first.version, first.entry_points) != (other.version, other.entry_points):
        return True
    return first.record != other.record if first.record and other.record else False


def _with_others(first: Distribution, every: list[tuple[str, Any]]) -> Distribution:
    others = tuple(dict.fromkeys(_place(version, files) for version, files in every))
    return replace(first, others=others) if others else first


def _place(version: str, files: importlib_metadata.Distribution | None) -> str:
    return f"{version} in {files.locate_file('')}" if files is not None else version


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution, or ``None`` if it is not installed."""
    try:
        return importlib_metadata.version(name)
    except importlib_metadata.PackageNotFoundError:
        return None


def not_installed(name: str, similar: Iterable[str]) -> str:
    """Return the message that no distribution has this name: it suggests the nearest of ``similar``, or else how to install it.

    The prefix ``kdplug-`` makes no two names similar.
    """
    by_own_name = {fold_distribution(one).removeprefix("kdplug-"): one for one in similar}
    near = nearest(fold_distribution(name).removeprefix("kdplug-"), by_own_name)
    where = f"no distribution {name!r} is installed in {sys.prefix}"
    if near is not None:
        return f"{where}. Did you mean {by_own_name[near]!r}?"
    if not is_distribution_name(name):
        return where
    return f"{where}: pip install {name}, or pip install -e . in its folder"


def unmet(requirements: Iterable[str], version: str = VERSION) -> str | None:
    """Return the first of a plugin's requirements on kdplug that ``version`` does not meet, such as ``kdplug>=2,<3``.

    Requirements of extras, with a marker that does not apply, or that cannot be parsed are ignored.
    """
    return next((text for line in requirements if (text := _unmet(line, version)) is not None), None)


@cache
def _unmet(line: str, version: str) -> str | None:
    try:
        wanted = Requirement(line)
        asks = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    except (ValueError, UndefinedEnvironmentName):  # the line or its marker is invalid
        return None
    if not asks:
        return None
    return None if wanted.specifier.contains(version, prereleases=True) else f"kdplug{wanted.specifier}"
