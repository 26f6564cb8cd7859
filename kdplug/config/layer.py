"""The config fields that say which layer of a model is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from kdplug.config.layer_path import read_path
from kdplug.config.scalar import LARGEST
from kdplug.config.words import shown
from kdplug.errors import ConfigError

Layer = int | str
"""The index of a layer in what an adaptor returns, or the path of a module."""

Layers = Layer | tuple[Layer, ...]


def is_path(layer: Layer) -> bool:
    return isinstance(layer, str)


def is_glob(layer: Layers) -> bool:
    """Whether the layer, or one in the list, may stand for several modules."""
    if isinstance(layer, tuple):
        return any(map(is_glob, layer))
    return isinstance(layer, str) and read_path(layer).is_glob


def in_list(layers: Layers) -> tuple[Layer, ...]:
    """The layers as a list, also where there is one and no list."""
    return layers if isinstance(layers, tuple) else (layers,)


def plain(layers: Layers) -> Any:
    """The layers as a config writes them."""
    return list(layers) if isinstance(layers, tuple) else layers


def is_listed(layers: Layers, others: Layers) -> bool:
    """Whether a match of these two sides compares lists of layers: one of them is written as one."""
    return isinstance(layers, tuple) or isinstance(others, tuple)


def check_pair(teacher: Layers, student: Layers) -> None:
    """Raises: ``ConfigError`` where the two sides of a match cannot be as many layers; a glob may be any number of them."""
    lists = isinstance(teacher, tuple), isinstance(student, tuple)
    either = f"got {plain(teacher)} and {plain(student)}"
    if any(lists) and not all(lists) and not is_glob(student if lists[0] else teacher):
        raise ConfigError(f"layer_T and layer_S must both be single layers or both be lists, {either}")
    counts = len(in_list(teacher)), len(in_list(student))
    if counts[0] != counts[1] and not (is_glob(teacher) or is_glob(student)):
        raise ConfigError(f"layer_T and layer_S must be equally long, {either}")


def _read_layers(data: object) -> Layers:
    if isinstance(data, (list, tuple)):
        if not data:
            raise ConfigError("an empty list names no layer")
        return tuple(_read_layer(item, place) for place, item in enumerate(data))
    return _read_layer(data)


def _read_layer(value: object, *place: int) -> Layer:
    if isinstance(value, str):
        try:
            return _read_text(value)
        except ConfigError as error:
            raise error.at(*place) from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"must be the index of a layer, the path of a module, or a list of these, got {shown(value)}"
        ).at(*place)
    if not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"must be from {-LARGEST} to {LARGEST}, got {shown(value)}").at(*place)
    return int(value)


def _read_text(value: str) -> str:
    text = str.__str__(value)
    read_path(text)
    return text


def _read_pattern(data: object) -> tuple[str, ...] | None:
    if data is None:
        return None
    layers = in_list(_read_layers(data))
    for layer in layers:
        if not isinstance(layer, str):
            raise ConfigError(f"must be the path of a module, a glob, or a list of these, got {shown(layer)}")
    return tuple(str(layer) for layer in layers)


_INDEX: dict[str, Any] = {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST}
_LAYER: dict[str, Any] = {"anyOf": [_INDEX, {"type": "string", "minLength": 1}]}
_PATH: dict[str, Any] = {"type": "string", "minLength": 1}

LayerField = Annotated[
    Layers,
    PlainValidator(_read_layers),
    PlainSerializer(plain),
    WithJsonSchema({"anyOf": [*_LAYER["anyOf"], {"type": "array", "minItems": 1, "items": _LAYER}]}),
]
"""A layer or a list of layers."""

PatternField = Annotated[
    tuple[str, ...] | None,
    PlainValidator(_read_pattern),
    PlainSerializer(lambda paths: paths[0] if paths is not None and len(paths) == 1 else paths and list(paths)),
    WithJsonSchema({"anyOf": [{"type": "null"}, _PATH, {"type": "array", "minItems": 1, "items": _PATH}]}),
]
"""Module paths and globs that together list layers, or none."""
