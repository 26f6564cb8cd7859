"""Plain data that cannot be changed: what the settings of a component hold inside a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from kdplug.config.words import shown
from kdplug.errors import ConfigError
from kdplug.host.bounded_json import CONFIG, check_bounds

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
"""The whole numbers of 64 bits, signed or not: no larger one can be a size, a count or a seed."""


class FrozenDict(dict[str, Any]):
    """A ``dict`` that refuses every change. Unlike a mapping proxy it can be copied, pickled and written as JSON."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a config cannot be changed: make a new one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict:
        return self

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def freeze(value: object) -> Any:
    """``value`` with tuples for lists and ``FrozenDict`` for mappings, and plain Python scalars.

    Raises: ``ConfigError``, whose field leads to the value, for anything that YAML and JSON cannot both hold; for more values or
    levels than a config may hold, and for a whole number of more than 64 bits.
    """
    check_bounds(value, CONFIG)
    return _freeze(value)


def _freeze(value: object) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            raise ConfigError(f"must be a whole number from {_SMALLEST} to {_LARGEST}, got {shown(value)}")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"must be a finite number, got {value!r}")
        return float(value)
    if isinstance(value, (list, tuple)):
        return tuple(_below(place, item) for place, item in enumerate(value))
    if isinstance(value, Mapping):
        return FrozenDict({_key(key): _below(key, item) for key, item in value.items()})
    raise ConfigError(
        f"a config is data: text, numbers, true, false, null, lists and mappings. Got {shown(value)} "
        f"({type(value).__name__})"
    )


def _below(place: object, item: object) -> Any:
    try:
        return _freeze(item)
    except ConfigError as error:
        raise error.at(place) from None


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"a key must be text, got {shown(key)}")
    return str.__str__(key)


def thaw(value: object) -> Any:
    """``value`` as fresh lists and dicts, which the caller may change."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value
