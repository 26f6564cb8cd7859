"""Changes to a config from the command line: ``training.lr=1e-3``."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from kdplug.config.text import yaml_value
from kdplug.config.words import shown
from kdplug.errors import ConfigError, UnknownKeyError, did_you_mean

_LONGEST_PATH = 1000


def overridden(given: dict[str, Any], full: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``given`` with the changes; ``full`` holds every key with its default, so that any of them may be set.

    Raises: ``ConfigError`` where an override is no ``path=value``; ``UnknownKeyError`` where its path leads nowhere.
    """
    given, full = deepcopy(given), deepcopy(full)
    for override in overrides:
        path, value = _split(override)
        for tree in (full, given):
            _put(tree, path, deepcopy(value), known=full)
    return given


def _split(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{shown(override)} is no change of a config. Write path=value, such as training.lr=1e-3")
    if len(path) > _LONGEST_PATH:
        raise ConfigError(f"the path of {shown(override)} has {len(path):,} characters; it may have {_LONGEST_PATH:,}")
    parts = path.strip().split(".")
    return parts, yaml_value(text, f"the value in {shown(override)}")


def _put(tree: dict[str, Any], path: list[str], value: Any, known: dict[str, Any]) -> None:
    """Set the value at ``path`` in ``tree``, checking each step against ``known``."""
    here: Any = tree
    there: Any = known
    for depth, part in enumerate(path):
        place = _step(there, part, path[:depth], last=depth == len(path) - 1)
        if depth == len(path) - 1:
            here[place] = value
            return
        there = there[place]
        if isinstance(here, dict):  # a key that was left at its default is in known alone
            here.setdefault(place, [] if isinstance(there, list) else {})
        here = here[place]


def _step(node: Any, part: str, above: list[str], *, last: bool) -> str | int:
    """The key or index that ``part`` means in ``node``."""
    where = ".".join(above)
    if isinstance(node, dict):
        if part not in node and not last:
            message = f"unknown key.{did_you_mean(part, node)} The keys here are: {', '.join(node)}"
            raise UnknownKeyError(message).at(*above, part)
        return part
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return int(part)
        others = f" to {len(node) - 1}" if len(node) > 1 else ""
        have = f"has the elements 0{others}" if node else "is empty"
        raise UnknownKeyError(f"{where} {have}").at(*above, part)
    raise UnknownKeyError(f"{where} is {shown(node)}, which holds no keys. Set {where} as a whole").at(*above, part)
