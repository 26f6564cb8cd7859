"""Changes of a recipe on the command line, ``path=value``."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from kdplug.config.text import yaml_value
from kdplug.config.words import shown
from kdplug.errors import ConfigError, UnknownKeyError, did_you_mean

_LONGEST_PATH = 1000


def overridden(given: dict[str, Any], full: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``given`` with the changes. ``full`` holds every key with its default, so that any of them may be set.

    Raises: ``ConfigError`` if an override is not ``path=value``; ``UnknownKeyError`` if its path does not exist.
    """
    given, full = deepcopy(given), deepcopy(full)
    for override in overrides:
        path, value = _split(override)
        for tree in (full, given):
            _put(tree, path, deepcopy(value), known=full)
    return given


def source_of(field: str, overrides: Iterable[str], *, with_inner: bool = False) -> str:
    """Return ``--set KEY`` for the override that set the field or what contains it; empty if there is none.

    ``with_inner`` includes an override of a value inside the field.
    """
    keys = [override.partition("=")[0].strip() for override in overrides]
    found = [key for key in keys if f"{field}.".startswith(f"{key}.")]
    found += [key for key in keys if with_inner and key.startswith(f"{field}.")]
    return f"--set {found[0]}" if found else ""


def _split(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{shown(override)} is not an override. Write path=value, such as training.lr=1e-3")
    if len(path) > _LONGEST_PATH:
        raise ConfigError(f"the path of {shown(override)} has {len(path):,} characters; the limit is {_LONGEST_PATH:,}")
    parts = path.strip().split(".")
    try:
        return parts, yaml_value(text, f"the value in {shown(override)}")
    except ConfigError as error:
        if "*" in text:
            error.message += (
                f". Put a value with * in quotes, which YAML would read as an alias: '{path.strip()}=\"*…\"'"
            )
        raise


def _put(tree: dict[str, Any], path: list[str], value: Any, known: dict[str, Any]) -> None:
    """Set the value at ``path`` in ``tree``. Each step must exist in ``known``, except the settings of a task."""
    here: Any = tree
    there: Any = known
    for depth, part in enumerate(path):
        place = _step(there, part, path[:depth], last=depth == len(path) - 1)
        if depth == len(path) - 1:
            here[place] = value
            return
        there = there.get(place, {}) if isinstance(there, dict) else there[place]
        if isinstance(here, dict):  # a key at its default is only in known
            here.setdefault(place, [] if isinstance(there, list) else {})
        here = here[place]


def _step(node: Any, part: str, above: list[str], *, last: bool) -> str | int:
    """Return the key or index of ``node`` that ``part`` denotes."""
    where = ".".join(above)
    if isinstance(node, dict):
        # The recipe holds only those settings of its task that it names; the task checks the others when it is built.
        if part not in node and not last and above[:1] != ["task"]:
            message = f"unknown key.{did_you_mean(part, node)} The keys here are: {', '.join(node)}"
            raise UnknownKeyError(message).at(*above, part)
        return part
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return int(part)
        have = f"is empty. Set {where} as a whole"
        if node:
            have = f"has only the elements 0 to {len(node) - 1}" if len(node) > 1 else "has only the element 0"
        raise UnknownKeyError(f"{where} {have}").at(*above, part)
    raise UnknownKeyError(f"{where} is {shown(node)}, which holds no keys. Set {where} as a whole").at(*above, part)
