"""Parse JSON within bounds: parsing cannot take minutes or gigabytes, and nested data cannot exhaust the stack."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdplug.errors import ConfigError

Number = TypeVar("Number", int, float)

LONGEST_NUMBER = 100
"""Maximum number of characters of a number."""

DEEPEST = 64
"""Maximum nesting depth of lists and mappings."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Maximum number of ``characters`` of a text, of ``values`` in it (without keys), and of characters of a ``key``."""

    characters: int
    values: int
    key: int


CONFIG = Bounds(characters=1 << 19, values=25_000, key=1000)
"""Limits for files written by people: configs, recipes and overrides."""

RECORD = Bounds(characters=1 << 26, values=1 << 22, key=1 << 12)
"""Limits for files written by kdplug: run records, manifests and checkpoints, whose keys may be parameter names."""


def read_json(path: Path, bounds: Bounds = RECORD) -> Any:
    """Read a JSON file.

    Raises: ``OSError`` if it cannot be read; ``ValueError`` (``ConfigError`` among them) if it is not UTF-8, not JSON
    or exceeds ``bounds``.
    """
    return json_value(read_bounded(path, bounds).decode("utf-8"), bounds)


def read_bounded(path: Path, bounds: Bounds) -> bytes:
    """Read a regular file, at most up to the limit, so that a huge file cannot fill the memory.

    Raises: ``OSError``; ``ConfigError`` if it exceeds ``bounds``, or is a pipe, socket or device, which may never end.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ConfigError(f"{str(path)!r} is a pipe, a socket or a device, but only regular files can be read")
    with path.open("rb") as file:
        content = file.read(bounds.characters + 1)
    check_length(len(content), bounds, repr(str(path)), "bytes")
    return content


def json_value(text: str, bounds: Bounds = RECORD, **hooks: Any) -> Any:
    """Parse JSON text; ``hooks`` are passed to ``json.loads``.

    Raises: ``json.JSONDecodeError``; ``ConfigError`` if the text exceeds ``bounds``.
    """
    check_length(len(text), bounds)
    try:
        found = json.loads(text, parse_int=_number(int), parse_float=_number(float), **hooks)
    except RecursionError:
        raise _too_deep() from None
    check_bounds(found, bounds)
    return found


def check_length(length: int, bounds: Bounds, source: str = "the text", unit: str = "characters") -> None:
    """Raise ``ConfigError`` if ``source`` is longer than ``bounds`` allow."""
    if length > bounds.characters:
        raise ConfigError(f"{source} holds more than {bounds.characters:,} {unit}, the maximum")


def check_bounds(value: object, bounds: Bounds) -> None:
    """Count the values of nested lists and mappings level by level; a shared object counts once per occurrence.

    Raises: ``ConfigError`` if there are more values or levels than ``bounds`` allow, or a longer key.
    """
    level: list[object] = [value]
    count = 1
    for _ in range(DEEPEST + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, Mapping):
                _check_keys(item, bounds)
                below.extend(item.values())
            elif isinstance(item, (list, tuple)):
                below.extend(item)
            if count + len(below) > bounds.values:
                raise ConfigError(f"holds more than {bounds.values:,} values, the maximum")
        if not below:
            return
        count += len(below)
        level = below
    raise _too_deep()


def key_too_long(key: str, bounds: Bounds) -> str:
    """Return the error message for a key that is longer than ``bounds`` allow."""
    return f"the key {key[:20]!r}… has {len(key):,} characters; the maximum is {bounds.key:,}"


def number_too_long(length: int) -> str:
    """Return the error message for a number of more than ``LONGEST_NUMBER`` characters."""
    return f"holds a number of {length:,} characters; the maximum is {LONGEST_NUMBER}"


def _check_keys(mapping: Mapping[Any, Any], bounds: Bounds) -> None:
    for key in mapping:
        if isinstance(key, str) and len(key) > bounds.key:
            raise ConfigError(key_too_long(key, bounds))


def _too_deep() -> ConfigError:
    return ConfigError(f"is nested too deeply: more than {DEEPEST} levels, or contains itself")


def _number(kind: type[Number]) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        if len(text) > LONGEST_NUMBER:
            raise ConfigError(number_too_long(len(text)))
        return kind(text)

    return read
