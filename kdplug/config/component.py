"""The types of config fields that name a component, one for each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from kdplug.config.frozen import freeze, thaw
from kdplug.config.words import shown
from kdplug.errors import ConfigError
from kdplug.host.registry import REGISTRIES
from kdplug.host.spec import ComponentSpec, parse_spec

_LONGEST_NAME = 200

COMPONENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": [{"type": "string", "minLength": 1}]},
        {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}},
    ]
}
"""JSON Schema (draft-07) of the three spellings."""


def read_component(data: object) -> ComponentSpec:
    """A frozen spec from any of the three spellings; the name is not looked up.

    Raises: ``ConfigError``.
    """
    spec = _fitting(parse_spec(data))
    name = parse_spec(spec.name).name
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"a component's name has at most {_LONGEST_NAME} characters, got {len(name):,}: {shown(name)}"
        )
    return ComponentSpec(name, freeze(spec.args), freeze(spec.settings), spec.form)


def _fitting(spec: ComponentSpec) -> ComponentSpec:
    """``spec`` in a form that can hold what it holds, which matters where it was made in Python and not read."""
    if spec.args:
        return replace(spec, form="list")
    return replace(spec, form="mapping") if spec.settings and spec.form == "name" else spec


def write_component(spec: ComponentSpec | None) -> Any:
    """Fresh plain data in the spelling that the component came in; ``"none"`` where there is no component."""
    return "none" if spec is None else thaw(_fitting(spec).to_data())


def is_none(value: object) -> bool:
    """Whether a config says ``null`` or ``none``."""
    return value is None or (isinstance(value, str) and value.casefold() == "none")


def resolve(spec: ComponentSpec, plural: str, site: str | None = None) -> ComponentSpec:
    """The component with its qualified name and every setting. Imports the entry.

    Raises: ``EntryError``, ``SettingError``, ``SignatureError``.
    """
    component = REGISTRIES[plural].build(spec, site=site)
    if component.entry.positional:  # its arguments have no names, so they stay as they are written
        return ComponentSpec(component.entry.qualified, spec.args, spec.settings, spec.form)
    return read_component(component.qualified_spec())


def _named(plural: str, site: str | None = None) -> Callable[[object], ComponentSpec]:
    """Read a component and look its name up in a registry. Nothing is imported."""

    def read(data: object) -> ComponentSpec:
        spec = read_component(data)
        REGISTRIES[plural].check(spec, site=site)
        return spec

    return read


def _named_or_none(plural: str) -> Callable[[object], ComponentSpec | None]:
    read = _named(plural)
    return lambda data: None if is_none(data) else read(data)


_WRITE = PlainSerializer(write_component)
_SCHEMA = WithJsonSchema(COMPONENT_SCHEMA)
_SCHEMA_OR_NONE = WithJsonSchema({"anyOf": [{"type": "null"}, *COMPONENT_SCHEMA["anyOf"]]})

AnyComponent = Annotated[ComponentSpec, PlainValidator(read_component), _WRITE, _SCHEMA]
"""A component whose name is looked up elsewhere."""

MatchLoss = Annotated[ComponentSpec, PlainValidator(_named("losses", "match")), _WRITE, _SCHEMA]
LayerMapComponent = Annotated[ComponentSpec, PlainValidator(_named("layer_maps")), _WRITE, _SCHEMA]
TaskComponent = Annotated[ComponentSpec, PlainValidator(_named("tasks")), _WRITE, _SCHEMA]
CacheCodecComponent = Annotated[
    ComponentSpec | None, PlainValidator(_named_or_none("cache_codecs")), _WRITE, _SCHEMA_OR_NONE
]
WeightScheduler = Annotated[
    ComponentSpec | None, PlainValidator(_named_or_none("weight_schedulers")), _WRITE, _SCHEMA_OR_NONE
]
TemperatureScheduler = Annotated[
    ComponentSpec | None, PlainValidator(_named_or_none("temperature_schedulers")), _WRITE, _SCHEMA_OR_NONE
]
