"""Checks of how plugins are installed: shadowed, damaged or outdated installations on the path."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from packaging.version import InvalidVersion, Version

from kdplug.errors import did_you_mean
from kdplug.host.check.finding import Finding
from kdplug.host.check.installation import Installation
from kdplug.host.kind import HOOK_GROUP, KINDS
from kdplug.host.name import fold_distribution, is_distribution_name

GROUPS = (*(kind.group for kind in KINDS.values()), HOOK_GROUP)
"""Entry-point groups that kdplug reads."""


def check_installations(found: Iterable[Installation]) -> Iterator[Finding]:
    """Yield the problems of plugin installations; ``found`` is in path order."""
    every = list(found)
    for one in every:
        for check in _CHECKS:
            yield from check(one)
    by_name = sorted((one for one in every if one.entry_points), key=lambda one: fold_distribution(one.dist))
    for _, copies in groupby(by_name, key=lambda one: fold_distribution(one.dist)):
        yield from duplicates(list(copies))
    yield from passed_over(every)


def unreadable(one: Installation) -> Iterator[Finding]:
    """Yield a finding for unreadable metadata, which hides every entry."""
    if one.error is not None:
        what = f"its metadata cannot be read, so none of its entries can be used: {one.error}"
        yield Finding(one.dist, "unreadable", "error", what, str(one.folder), _again(one))


def nameless(one: Installation) -> Iterator[Finding]:
    """Yield a finding for ``dist-info`` without a valid name, left by an interrupted installation or a broken tool."""
    if one.error is None and not is_distribution_name(one.name) and one.entry_points:
        problem = f"has the invalid name {one.name!r}" if one.name else "has no name"
        what = f"its metadata {problem}, so none of its entries can be used"
        yield Finding(one.dist, "nameless", "error", what, str(one.folder), _again(one))


def leftover(one: Installation) -> Iterator[Finding]:
    """Yield a finding for an empty ``dist-info`` of an interrupted uninstall.

    kdplug ignores it; the standard library does not.
    """
    if one.error is None and not one.has_metadata and not one.entry_points:
        what = "it is a leftover of an earlier installation and has no metadata; some tools mistake it for the real one"
        yield Finding(one.dist, "leftover", "warning", what, str(one.folder), f"rm -r {one.folder}")


def odd_lines(one: Installation) -> Iterator[Finding]:
    """Yield a finding for each line of ``entry_points.txt`` that is not ``name = value``, which is ignored."""
    for line in one.odd_lines:
        what = f"the line {line!r} is not 'name = module:attribute' and is ignored"
        where = str(one.folder / "entry_points.txt")
        yield Finding(
            one.dist, "odd-line", "error", what, where, f"correct the line in pyproject.toml, then {_again(one)}"
        )


def unknown_groups(one: Installation) -> Iterator[Finding]:
    """Yield a finding for each entry-point group that kdplug does not read, such as ``kdplug.loss``.

    A group of another package, such as ``kdplug_vision.backbones``, is none.
    """
    for group in dict.fromkeys(point.group for point in one.entry_points):
        owner, dot, _ = group.partition(".")
        near = did_you_mean(group, GROUPS)
        if group in GROUPS or (dot and owner.startswith("kdplug_")) or not (near or group.startswith("kdplug.")):
            continue
        names = ", ".join(point.name for point in one.entry_points if point.group == group)
        what = (
            f"the entry-point group {group!r} is not read, so {names} cannot be used.{near} Groups: {', '.join(GROUPS)}"
        )
        fix = f"rename the group in pyproject.toml, then {_again(one)}"
        yield Finding(one.dist, "unknown-group", "error", what, str(one.folder / "entry_points.txt"), fix)


def drifted(one: Installation) -> Iterator[Finding]:
    """Yield a finding for an editable project whose entry points changed since it was installed.

    Its metadata is not updated.
    """
    if one.project is None:
        return
    if not one.project.is_dir():
        what = "it is editable, but its project folder no longer exists"
        yield Finding(one.dist, "project-gone", "error", what, str(one.project), f"pip uninstall {one.dist}")
        return
    file = one.project / "pyproject.toml"
    try:
        declared = _declared(tomllib.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
    except (ValueError, AttributeError) as error:
        yield Finding(
            one.dist, "project-unreadable", "error", f"cannot be read: {error}", str(file), "correct the file"
        )
        return
    installed = {(point.group, point.name): _plain(point.value) for point in one.entry_points}
    if declared is None or declared == installed:
        return
    differences = [
        *(f"{name} ({group}) is not installed" for group, name in sorted(declared.keys() - installed.keys())),
        *(
            f"{name} ({group}) is installed but no longer declared"
            for group, name in sorted(installed.keys() - declared.keys())
        ),
        *(
            f"{name} ({group}) is installed as {installed[group, name]}"
            for group, name in sorted(declared.keys() & installed.keys())
            if declared[group, name] != installed[group, name]
        ),
    ]
    what = f"its pyproject.toml has changed since it was installed: {', '.join(differences)}"
    yield Finding(one.dist, "drifted", "error", what, str(file), f"pip install -e {one.project}")


def duplicates(copies: list[Installation]) -> Iterator[Finding]:
    """Yield a finding for each installation that another one of the same name precedes on the path and hides."""
    first, *rest = copies
    for other in rest:
        lost = sorted({point.name for point in other.entry_points} - {point.name for point in first.entry_points})
        hides = f" and shadows {', '.join(lost)}" if lost else ""
        if first.place == other.place and first.folder.suffix == other.folder.suffix:
            old = min(first, other, key=lambda one: _version(one.version))
            what = f"versions {first.version} and {other.version} are in one folder; which one is used is undefined"
            yield Finding(first.dist, "duplicate", "error", what, str(old.folder), f"rm -r {old.folder}")
        elif _is_copy(first, other):
            continue
        elif first.is_egg_info:
            what = f"a stale egg-info, {first.version}, precedes {other.folder} ({other.version}){hides}"
            yield Finding(first.dist, "stale-egg-info", "error", what, str(first.folder), f"rm -r {first.folder}")
        elif lost or _version(first.version) < _version(other.version):
            what = f"version {first.version} precedes {other.folder} ({other.version}){hides}"
            yield Finding(first.dist, "duplicate", "error", what, str(first.folder), f"pip uninstall {first.dist}")
        else:
            what = f"version {first.version} precedes {other.folder} ({other.version})"
            yield Finding(first.dist, "duplicate", "warning", what, str(other.folder), f"rm -r {other.folder}")


def _is_copy(first: Installation, other: Installation) -> bool:
    same = (first.version, first.entry_points) == (other.version, other.entry_points)
    return same and (first.record == other.record or not (first.record and other.record))


def passed_over(every: list[Installation]) -> Iterator[Finding]:
    """Yield a finding for metadata without kdplug entry points that precedes the plugin's own.

    kdplug ignores it; other tools do not.
    """
    for place, one in enumerate(every):
        hidden = [other for other in every[place + 1 :] if other.entry_points and _same(one, other)]
        before = [other for other in every[:place] if other.entry_points and _same(one, other)]
        if one.entry_points or not one.has_metadata or not hidden or before:
            continue
        noun, check = ("a stale egg-info", "stale-egg-info") if one.is_egg_info else ("an installation", "duplicate")
        what = (
            f"{noun}, {one.version}, without entry points precedes {hidden[0].folder} ({hidden[0].version}); kdplug "
            "ignores it, but other tools mistake it for the real one"
        )
        yield Finding(one.dist, check, "warning", what, str(one.folder), f"rm -r {one.folder}")


def _same(one: Installation, other: Installation) -> bool:
    return fold_distribution(one.dist) == fold_distribution(other.dist)


_CHECKS: tuple[Callable[[Installation], Iterator[Finding]], ...] = (
    unreadable,
    nameless,
    leftover,
    odd_lines,
    unknown_groups,
    drifted,
)


def _declared(pyproject: dict[str, Any]) -> dict[tuple[str, str], str] | None:
    """Return the declared entry points of a project, or ``None`` if they are dynamic or declared elsewhere."""
    project = pyproject.get("project")
    if project is None or "entry-points" in project.get("dynamic", ()):
        return None
    return {
        (group, name): _plain(value)
        for group, points in project.get("entry-points", {}).items()
        if group.casefold().startswith("kdplug")
        for name, value in points.items()
    }


def _plain(value: str) -> str:
    return "".join(value.split())


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def _again(one: Installation) -> str:
    """Return the command that reinstalls it."""
    return f"pip install -e {one.project}" if one.project is not None else f"pip install --force-reinstall {one.dist}"
