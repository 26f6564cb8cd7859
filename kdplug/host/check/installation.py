"""All installations on the path, including unreadable and shadowed ones.

``host.metadata`` reads only the distributions in use, in one pass at import. This module reads all of them, so that a
check can report which are not used, and why.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from kdplug.host.bounded_json import read_json
from kdplug.host.metadata import EntryPoint
from kdplug.host.name import fold_distribution

_PREFIX = "kdplug"
_FOLDER = re.compile(r"(?P<name>.+?)(?:-(?P<version>[^-]+)(?:-py[\d.]+)?)?\.(?:dist|egg)-info")


@dataclass(frozen=True)
class Installation:
    """Content of a ``dist-info`` or ``egg-info``, and the error if a file is unreadable.

    ``entry_points`` are those of groups that begin with ``kdplug``, known or not; ``odd_lines`` are lines of such
    groups that are not ``name = value``.
    """

    folder: Path
    name: str
    version: str
    has_metadata: bool
    entry_points: tuple[EntryPoint, ...] = ()
    odd_lines: tuple[str, ...] = ()
    error: str | None = None

    @property
    def place(self) -> Path:
        """The path entry that contains it."""
        return self.folder.parent

    @property
    def is_egg_info(self) -> bool:
        return self.folder.suffix == ".egg-info"

    @property
    def dist(self) -> str:
        """Its name in the metadata, or else in the folder name."""
        return self.name or _named(self.folder)[0]

    @cached_property
    def record(self) -> bytes:
        """Content of ``RECORD``, which lists the hash of every installed file; empty if it is missing."""
        try:
            return (self.folder / "RECORD").read_bytes()
        except OSError:
            return b""

    @cached_property
    def project(self) -> Path | None:
        """The folder of an editable project, or ``None`` if it is not editable."""
        try:
            found: Any = read_json(self.folder / "direct_url.json")
            if not found["dir_info"].get("editable", False):
                return None
            return Path(url2pathname(urlsplit(found["url"]).path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def installations(path: Iterable[str] | None = None) -> list[Installation]:
    """Return every installation on ``path`` (default ``sys.path``), in path order."""
    places = dict.fromkeys(Path(place or ".").resolve() for place in (sys.path if path is None else path))
    return [_read(folder) for place in places for folder in _folders(place)]


def about_plugins(found: Iterable[Installation]) -> list[Installation]:
    """Return installations with a kdplug entry point or name, and unreadable and editable ones, which may have either."""
    every = list(found)
    names = {fold_distribution(one.dist) for one in every if one.entry_points or one.odd_lines}
    return [
        one
        for one in every
        if fold_distribution(one.dist) in names
        or fold_distribution(one.dist).startswith(_PREFIX)
        or one.project is not None
        or one.error is not None
    ]


def _folders(place: Path) -> Iterator[Path]:
    try:
        yield from sorted(child for child in place.iterdir() if child.suffix in (".dist-info", ".egg-info"))
    except OSError:
        return


def _named(folder: Path) -> tuple[str, str]:
    match = _FOLDER.fullmatch(folder.name)
    return (match["name"].replace("_", "-"), match["version"] or "") if match else (folder.stem, "")


def _read(folder: Path) -> Installation:
    try:
        text = _text(folder / "METADATA") or _text(folder / "PKG-INFO") or (_text(folder) if folder.is_file() else "")
        points = _text(folder / "entry_points.txt")
    except (OSError, UnicodeDecodeError) as error:
        return Installation(folder, "", _named(folder)[1], has_metadata=True, error=f"{type(error).__name__}: {error}")
    head = HeaderParser().parsestr(text)
    entry_points, odd_lines = _entry_points(points)
    version = head["Version"] or _named(folder)[1]
    return Installation(folder, head["Name"] or "", version, bool(text.strip()), entry_points, odd_lines)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _entry_points(text: str) -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
    group, points, odd = "", [], []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif not group.casefold().startswith(_PREFIX) or not line or line.startswith(("#", ";")):
            continue
        elif "=" in line:
            name, _, value = line.partition("=")
            points.append(EntryPoint(group, name.strip(), value.strip()))
        else:
            odd.append(line)
    return tuple(points), tuple(odd)
