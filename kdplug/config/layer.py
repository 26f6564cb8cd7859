"""Config fields that name the layers whose features are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from kdplug.config.model import LARGEST
from kdplug.config.words import shown
from kdplug.errors import ConfigError, did_you_mean

Source = Literal["output", "input"]

_PATH = re.compile(r"(?P<modules>[^:@\s]+)(?:@(?P<call>-?\d{1,9}))?(?::(?P<source>\w*)(?P<steps>.*))?")
_STEP = re.compile(r"\[(-?\d{1,9})\]|\.([A-Za-z_]\w*)")
_EXAMPLE = "encoder.layer.3, encoder.layer.3:output[1], encoder.layer.3:input[0] or encoder:output.hidden_states[2]"


@dataclass(frozen=True, slots=True)
class LayerPath:
    """A parsed path such as ``encoder.layer.3@0:output[1].scores``.

    ``modules`` is the dotted path of a module in its model, or a glob over such paths: ``*`` matches any one part,
    ``**`` any number of parts. ``call`` selects one of several calls in a forward pass. ``steps`` lead from the
    module's output, or its input, to a tensor. Without steps, the first tensor of a tuple is read.
    """

    modules: str
    call: int | None = None
    source: Source = "output"
    steps: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        call = "" if self.call is None else f"@{self.call}"
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        what = f":{self.source}{steps}" if steps or self.source != "output" else ""
        return f"{self.modules}{call}{what}"

    @property
    def is_glob(self) -> bool:
        """True if the path may match several modules."""
        return any(sign in self.modules for sign in "*?[")

    def matches(self, name: str) -> bool:
        """Return whether this path or glob matches the module ``name``."""
        if not self.is_glob:
            return name == self.modules
        return _matches(self.modules.split("."), name.split("."))

    def on(self, module: str) -> LayerPath:
        """Return the same path for the module ``module``."""
        return replace(self, modules=module)


def read_path(text: str) -> LayerPath:
    """Parse a module path. Whether a model has that module is not checked here.

    Raises: ``ConfigError``.
    """
    found = _PATH.fullmatch(text)
    if found is None or "" in found["modules"].split("."):
        raise ConfigError(f"cannot read {shown(text)} as the path of a module. Examples: {_EXAMPLE}")
    source, steps = found["source"], found["steps"] or ""
    if source is not None and source not in ("output", "input"):
        near = did_you_mean(source, ["output", "input"])
        raise ConfigError(
            f"{shown(text)}: ':' must be followed by output or input, got {shown(source)}.{near}".rstrip(".")
        )
    if _STEP.sub("", steps):
        raise ConfigError(f"{shown(text)}: cannot read {shown(steps)}. Write [1] or .name after {source}")
    call = None if found["call"] is None else int(found["call"])
    taken = tuple(int(number) if number else name for number, name in _STEP.findall(steps))
    return LayerPath(found["modules"], call, "input" if source == "input" else "output", taken)


TensorKind = Literal["parameter", "buffer"]

_TENSOR = re.compile(r"(?P<module>[^:@\s]*):(?P<kind>\w*)\.(?P<name>[^\s.:]+)")
_TENSOR_EXAMPLE = "fc:parameter.weight, bn3:buffer.running_var, or :parameter.scale for one of the model itself"


@dataclass(frozen=True, slots=True)
class TensorPath:
    """A parsed path such as ``fc:parameter.weight``. An empty ``module`` is the model itself."""

    module: str
    kind: TensorKind
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.kind}.{self.name}"


def read_tensor_path(text: str) -> TensorPath:
    """Parse the path of a parameter or buffer. Whether a model has it is not checked here.

    Raises: ``ConfigError``.
    """
    found = _TENSOR.fullmatch(text)
    if found is None or (found["module"] and "" in found["module"].split(".")):
        module, _, name = text.rpartition(".")
        near = (
            f" Did you mean {shown(f'{module}:parameter.{name}')}?" if name.isidentifier() and ":" not in text else ""
        )
        raise ConfigError(
            f"cannot read {shown(text)} as the path of a parameter or buffer.{near} Examples: {_TENSOR_EXAMPLE}"
        )
    kind = found["kind"]
    if kind not in ("parameter", "buffer"):
        near = did_you_mean(kind, ["parameter", "buffer"])
        raise ConfigError(
            f"{shown(text)}: ':' must be followed by parameter or buffer, got {shown(kind)}.{near}".rstrip(".")
        )
    if any(sign in found["module"] for sign in "*?["):
        raise ConfigError(f"{shown(text)}: a glob may match several modules. Write one path for each parameter")
    return TensorPath(found["module"], "buffer" if kind == "buffer" else "parameter", found["name"])


def _matches(pattern: list[str], name: list[str]) -> bool:
    """Match the parts of a glob with those of a path, in time proportional to the product of their numbers."""
    read = {0}  # how many parts of the name the pattern so far may match
    for part in pattern:
        if part == "**":
            read = set(range(min(read), len(name) + 1))
        else:
            read = {place + 1 for place in read if place < len(name) and fnmatchcase(name[place], part)}
        if not read:
            return False
    return len(name) in read


Layer = int | str
"""Index of a layer in the outputs of an adaptor, or the path of a module."""

Layers = Layer | tuple[Layer, ...]


def is_path(layer: Layer) -> bool:
    return isinstance(layer, str)


def is_glob(layer: Layers) -> bool:
    """Return whether the layer, or one in the list, may match several modules."""
    if isinstance(layer, tuple):
        return any(map(is_glob, layer))
    return isinstance(layer, str) and read_path(layer).is_glob


def in_list(layers: Layers) -> tuple[Layer, ...]:
    """Return the layers as a tuple, even for a single layer."""
    return layers if isinstance(layers, tuple) else (layers,)


def plain(layers: Layers) -> Any:
    """Return the layers as they are written in a config."""
    return list(layers) if isinstance(layers, tuple) else layers


def is_listed(layers: Layers, others: Layers) -> bool:
    """Return whether a match of these two sides compares lists of layers: at least one side is a list."""
    return isinstance(layers, tuple) or isinstance(others, tuple)


def check_pair(teacher: Layers, student: Layers, *, equal: bool = True) -> None:
    """Raise ``ConfigError`` if the sides cannot both be single layers or lists, of ``equal`` length. A glob may match any."""
    lists = isinstance(teacher, tuple), isinstance(student, tuple)
    either = f"got {plain(teacher)} and {plain(student)}"
    if any(lists) and not all(lists) and not is_glob(student if lists[0] else teacher):
        raise ConfigError(f"layer_T and layer_S must both be single layers or both be lists, {either}")
    counts = len(in_list(teacher)), len(in_list(student))
    if equal and counts[0] != counts[1] and not (is_glob(teacher) or is_glob(student)):
        raise ConfigError(f"layer_T and layer_S must have the same length, {either}")


def _read_layers(data: object) -> Layers:
    if isinstance(data, (list, tuple)):
        if not data:
            raise ConfigError("the list is empty: name at least one layer")
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


_PATTERN = r"^[^:@\s.]+(\.[^:@\s.]+)*(@-?\d+)?(:(output|input)(\[-?\d+\]|\.[A-Za-z_]\w*)*)?$"
_PATHS: dict[str, Any] = {
    "type": ["null", "string", "array"],
    "pattern": _PATTERN,
    "minItems": 1,
    "items": {"type": "string", "pattern": _PATTERN},
}
_BOUNDS = {"minimum": -LARGEST, "maximum": LARGEST}
_LAYERS: dict[str, Any] = {
    **_PATHS,
    "type": ["integer", "string", "array"],
    **_BOUNDS,
    "items": {"type": ["integer", "string"], "pattern": _PATTERN, **_BOUNDS},
}

LayerField = Annotated[
    Layers,
    PlainValidator(_read_layers),
    PlainSerializer(plain),
    WithJsonSchema(_LAYERS),
]
"""A layer or a list of layers."""

OptionalLayers = Annotated[
    Layers | None,
    PlainValidator(lambda data: None if data is None else _read_layers(data)),
    PlainSerializer(lambda layers: None if layers is None else plain(layers)),
    WithJsonSchema({**_LAYERS, "type": ["null", *_LAYERS["type"]]}),
]
"""A layer, a list of layers, or none."""

PatternField = Annotated[
    tuple[str, ...] | None,
    PlainValidator(_read_pattern),
    PlainSerializer(lambda paths: paths[0] if paths is not None and len(paths) == 1 else paths and list(paths)),
    WithJsonSchema(_PATHS),
]
"""Module paths and globs that together name the layers, or none."""

_TENSOR_PATTERN = r"^([^:@\s.*?\[]+(\.[^:@\s.*?\[]+)*)?:(parameter|buffer)\.[^\s.:]+$"


def _read_tensor_paths(data: object) -> tuple[str, ...] | None:
    found = read_names(data, "fc:parameter.weight")
    for place, text in enumerate(found or ()):
        try:
            read_tensor_path(text)
        except ConfigError as error:
            raise error.at(place) from None
    return found


def read_names(data: object, example: str) -> tuple[str, ...] | None:
    """Read a list of different names, or ``None``.

    Raises: ``ConfigError`` for anything else.
    """
    if data is None:
        return None
    if not isinstance(data, (list, tuple)):
        raise ConfigError(f"must be a list, such as [{example}], got {shown(data)}")
    if not data:
        raise ConfigError(f"the list is empty. Write at least one name, such as [{example}], or leave the key out")
    for place, name in enumerate(data):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"must be a name, such as {example}, got {shown(name)}").at(place)
        if name in data[:place]:
            raise ConfigError(f"{shown(name)} is in the list twice").at(place)
    return tuple(str.__str__(name) for name in data)


def names_schema(pattern: str) -> dict[str, Any]:
    """Return the JSON Schema of a list of different names, or null."""
    items = {"type": "string", "pattern": pattern}
    return {"type": ["null", "array"], "minItems": 1, "uniqueItems": True, "items": items}


TensorPaths = Annotated[
    tuple[str, ...] | None,
    PlainValidator(_read_tensor_paths),
    PlainSerializer(lambda paths: paths and list(paths)),
    WithJsonSchema(names_schema(_TENSOR_PATTERN)),
]
"""Paths of parameters and buffers, or none."""
