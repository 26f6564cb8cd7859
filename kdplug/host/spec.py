"""A component as written in a config: a name and settings, in one of three spellings."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from kdplug.errors import ConfigError
from kdplug.host.name import cut, shown

Form = Literal["name", "list", "mapping"]

_SPELLINGS = "Write a name, [name, setting…] or {name: …, setting: …}"


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """A component by name, as written in a config.

    ``args`` are settings by position, ``settings`` by keyword; ``to_data`` keeps the original spelling (``form``).
    """

    name: str
    args: tuple[Any, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    form: Form = "name"

    def to_data(self) -> Any:
        """Return the component as plain data, in its original spelling."""
        settings = deepcopy(dict(self.settings))
        if self.form == "mapping":
            return {"name": self.name, **settings}
        if self.form == "list":
            ends_in_mapping = bool(self.args) and isinstance(self.args[-1], Mapping)
            return [self.name, *deepcopy(list(self.args)), *([settings] if settings or ends_in_mapping else [])]
        return self.name

    def __str__(self) -> str:
        return cut(str(self.to_data()))


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"a component's name must be a non-empty string, got {shown(value)}. {_SPELLINGS}")
    return value


def _written_settings(value: Mapping[Any, Any]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"a setting's name must be a string, got {shown(key)}")
    return deepcopy(dict(value))


def parse_spec(data: object) -> ComponentSpec:
    """Read a component from ``"dkd"``, ``["dkd", 1, 8]`` or ``{"name": "dkd", "alpha": 1}``.

    In a list, a mapping at the end holds settings by keyword, as in TextBrewer.

    Raises: ``ConfigError`` for any other data.
    """
    if isinstance(data, ComponentSpec):
        return data
    if isinstance(data, str):
        return ComponentSpec(_name(data))
    if isinstance(data, (list, tuple)):
        if not data:
            raise ConfigError(f"an empty list names no component. {_SPELLINGS}")
        name, *args = data
        settings = _written_settings(args.pop()) if args and isinstance(args[-1], Mapping) else {}
        return ComponentSpec(_name(name), tuple(deepcopy(args)), settings, "list")
    if isinstance(data, Mapping):
        if "name" not in data:
            raise ConfigError(f"a component needs a 'name', got {shown(dict(data))}. {_SPELLINGS}")
        settings = _written_settings({key: value for key, value in data.items() if key != "name"})
        return ComponentSpec(_name(data["name"]), (), settings, "mapping")
    if callable(data):
        raise ConfigError(
            f"a config holds plain data, got the callable {data!r}. Register it under a name "
            "(kdplug.losses.register('my_loss')) and write that name"
        )
    raise ConfigError(f"cannot read {shown(data)} as a component. {_SPELLINGS}")
