"""Base class of configs. A config is immutable, rejects unknown keys, and raises kdplug's errors."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NoReturn, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    ValidationError,
    WithJsonSchema,
)

from kdplug.config.key import Place
from kdplug.config.text import Document, json_document, read_document, read_text, write_json, write_yaml, yaml_document
from kdplug.config.words import in_words, shown
from kdplug.errors import ConfigError, KdplugError, UnknownKeyError, did_you_mean, nearest
from kdplug.host.bounded_json import CONFIG, check_bounds, json_value
from kdplug.host.registry import REGISTRIES
from kdplug.host.spec import ComponentSpec, parse_spec

_MOST_SHOWN = 10
"""Maximum number of problems that one error about a config lists."""


class ConfigModel(BaseModel):
    """Frozen data that round-trips through dict, JSON and YAML.

    Every constructor raises a single error of the ``KdplugError`` family, with the dotted path of each wrong value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    retired: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Keys that no longer exist, and what to write instead."""

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            problem = _one_error(_problems(type(self), error), error.error_count())
            raise problem from problem.__cause__

    # Declares to pydantic that this is not a custom constructor, so that nested models report their errors to the outer one.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate as pydantic does, with kdplug's errors."""
        return cls._checked(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate as pydantic does, with kdplug's errors."""
        with suppress(UnicodeDecodeError, json.JSONDecodeError):  # pydantic reports these
            json_value(json_data if isinstance(json_data, str) else bytes(json_data).decode("utf-8"), CONFIG)
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            problem = _one_error(_problems(cls, error), error.error_count())
            raise problem from problem.__cause__

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read plain data as returned by ``to_dict``.

        Raises: ``ConfigError`` or ``EntryError`` with the path of each wrong value.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{cls.__name__}.from_dict takes a mapping of keys to values, got {shown(data)}")
        return cls._checked(dict(data))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read JSON text."""
        return cls._from_document(json_document(text))

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read YAML 1.2 text."""
        return cls._from_document(yaml_document(text))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``.yaml``, ``.yml`` or ``.json`` file. Errors name the line."""
        return cls._from_document(read_document(path))

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """Read a JSON file with any suffix."""
        return cls._from_document(json_document(read_text(path), Path(path).name))

    def to_dict(self) -> dict[str, Any]:
        """Return new plain data: every key, with components in their original spelling."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Return JSON text."""
        return write_json(self.to_dict())

    def to_yaml(self) -> str:
        """Return YAML 1.2 text."""
        return write_yaml(self.to_dict())

    def with_defaults(self, **values: Any) -> Self:
        """Return a copy with values for absent keys, which still count as unset."""
        copied = self.model_copy()
        copied.__dict__.update(values)
        return copied

    def _fill(self, **values: Any) -> None:
        """Set values for absent keys, which still count as unset."""
        self.__dict__.update(values)

    @classmethod
    def _from_document(cls, document: Document) -> Self:
        return cls._checked(document.data, place=document.place)

    @classmethod
    def _checked(cls, data: object, *, place: Callable[[str], str] | None = None, **options: Any) -> Self:
        try:
            return super().model_validate(data, **options)
        except ValidationError as error:
            problems, count = _problems(cls, error), error.error_count()
        if place is not None:
            for problem in problems:
                where = place(problem.field)
                problem.message += f"   ({where})" if where else ""
        problem = _one_error(problems, count)
        raise problem from problem.__cause__


def _problems(model: type[ConfigModel], error: ValidationError) -> list[KdplugError]:
    """Return the first problems. Finding the nearest key and the line for thousands would take minutes."""
    return [_problem(model, dict(one)) for one in error.errors(include_url=False)[:_MOST_SHOWN]]


def _problem(model: type[ConfigModel], one: dict[str, Any]) -> KdplugError:
    path = one["loc"]
    ours = (one.get("ctx") or {}).get("error")
    if isinstance(ours, KdplugError):
        return ours.at(*path)
    if one["type"] == "extra_forbidden":
        return UnknownKeyError(_unknown(_model_at(model, path[:-1]), str(path[-1]))).at(*path)
    return ConfigError(in_words(one)).at(*path)


def _unknown(model: type[ConfigModel], key: str) -> str:
    if key in model.retired:
        return model.retired[key]
    names = [*model.model_fields, *model.retired]
    near = did_you_mean(key, names) or f" The keys here are: {', '.join(model.model_fields)}"
    meant = model.retired.get(nearest(key, names) or "")
    return f"unknown key.{near}{f' It {meant}' if meant else ''}"


def _model_at(model: type[ConfigModel], path: tuple[str | int, ...]) -> type[ConfigModel]:
    for part in path:
        if part in model.model_fields:
            model = _model_in(model.model_fields[str(part)].annotation) or model
    return model


def _model_in(annotation: object) -> type[ConfigModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, ConfigModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _one_error(problems: list[KdplugError], count: int) -> KdplugError:
    """Return a single problem itself, so that its class can be caught, or one error with a line for each problem."""
    if count == 1:
        return problems[0]
    first = "" if count == len(problems) else f", the first {len(problems)} of which are"
    return ConfigError(f"{count} problems{first}:" + "".join(f"\n    {problem}" for problem in problems))


Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False), AfterValidator(float)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False), AfterValidator(float)]
HIGHEST = 1e15
"""The highest temperature or weight: losses multiply by the square of a temperature, which has to fit into float32."""
Temperature = Annotated[Positive, Field(le=HIGHEST)]
Weight = Annotated[NonNegative, Field(le=HIGHEST)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(float)]
"""A fraction in [0, 1)."""

LARGEST = 2**31 - 1
"""Largest count or seed: the largest 32-bit integer, which NumPy's generator, file formats and kernels accept."""

Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST), AfterValidator(int)]
WholeNumber = Annotated[int, Strict(), Field(ge=0, le=LARGEST), AfterValidator(int)]
Processes = Annotated[int, Strict(), Field(ge=0, le=1024), AfterValidator(int)]
"""Number of processes that one process starts."""

Switch = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), Field(min_length=1, max_length=4096), AfterValidator(str)]
"""Text of at most 4,096 characters, the longest path on Linux."""


_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
"""Range of 64-bit integers, signed or unsigned. No size, count or seed is outside it."""


class FrozenDict(dict[str, Any]):
    """A ``dict`` that cannot be changed. Unlike a mapping proxy it can be copied, pickled and written as JSON."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("configs are immutable: create a new one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict:
        return self

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def freeze(value: object) -> Any:
    """Return ``value`` with tuples for lists, ``FrozenDict`` for mappings, and plain Python scalars.

    Raises: ``ConfigError`` with the path of the value, for anything that YAML and JSON cannot both represent, for too
    many values or levels, and for an integer of more than 64 bits.
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
    """Return ``value`` as new lists and dicts, which the caller may change."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value


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
    """Read a frozen spec in any of the three spellings. The name is not looked up.

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
    """Return ``spec`` in a form that can express its settings. A spec made in Python may have a form that cannot."""
    if spec.args:
        return replace(spec, form="list")
    return replace(spec, form="mapping") if spec.settings and spec.form == "name" else spec


def write_component(spec: ComponentSpec | None) -> Any:
    """Return new plain data in the original spelling; ``"none"`` for no component."""
    return "none" if spec is None else thaw(_fitting(spec).to_data())


NONE_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[nN][oO][nN][eE]$"}]}
"""JSON Schema of the values that mean no component."""


def is_none(value: object) -> bool:
    """Return whether a config value is ``null`` or ``none``."""
    return value is None or (isinstance(value, str) and value.casefold() == "none")


def resolve(spec: ComponentSpec, plural: str, slot: str | None = None) -> ComponentSpec:
    """Return the component with its qualified name and every setting. Imports the entry.

    Raises: ``EntryError``, ``SettingError``, ``SignatureError``.
    """
    component = REGISTRIES[plural].build(spec, slot=slot)
    if component.entry.positional:  # its arguments have no names, so they stay as they are written
        return ComponentSpec(component.entry.qualified, spec.args, spec.settings, spec.form)
    return read_component(component.qualified_spec())


def _named(place: Place) -> Callable[[object], ComponentSpec]:
    """Return a function that reads a component and looks its name up in a registry. Nothing is imported."""

    def read(data: object) -> ComponentSpec:
        spec = read_component(data)
        REGISTRIES[place.plural].check(spec, slot=place.slot)
        return spec

    return read


def named_or_none(place: Place) -> Callable[[object], ComponentSpec | None]:
    """Return a function like ``_named`` that also reads ``none``."""
    read = _named(place)
    return lambda data: None if is_none(data) else read(data)


_WRITE = PlainSerializer(write_component)
_SCHEMA = WithJsonSchema(COMPONENT_SCHEMA)
SCHEMA_OR_NONE = WithJsonSchema({"anyOf": [{"type": "null"}, *COMPONENT_SCHEMA["anyOf"]]})

_KD_LOSS, _MATCH_LOSS = Place("losses", "kd"), Place("losses", "match")
_LAYER_MAP, _TASK, _COMBINER = Place("layer_maps"), Place("tasks"), Place("teacher_combiners")
_CODEC, _BALANCER = Place("cache_codecs", optional=True), Place("balancers", optional=True)
_WEIGHT = Place("weight_schedulers", optional=True)
_TEMPERATURE = Place("temperature_schedulers", optional=True)

KdLoss = Annotated[ComponentSpec, PlainValidator(read_component), _WRITE, _SCHEMA, _KD_LOSS]
TeacherCombiner = Annotated[ComponentSpec, PlainValidator(read_component), _WRITE, _SCHEMA, _COMBINER]
"""``DistillationConfig`` looks both up, unless they are at their default."""

MatchLoss = Annotated[ComponentSpec, PlainValidator(_named(_MATCH_LOSS)), _WRITE, _SCHEMA, _MATCH_LOSS]
LayerMapComponent = Annotated[ComponentSpec, PlainValidator(_named(_LAYER_MAP)), _WRITE, _SCHEMA, _LAYER_MAP]
TaskComponent = Annotated[ComponentSpec, PlainValidator(_named(_TASK)), _WRITE, _SCHEMA, _TASK]
CacheCodecComponent = Annotated[
    ComponentSpec | None, PlainValidator(named_or_none(_CODEC)), _WRITE, SCHEMA_OR_NONE, _CODEC
]
BalancerComponent = Annotated[
    ComponentSpec | None, PlainValidator(named_or_none(_BALANCER)), _WRITE, SCHEMA_OR_NONE, _BALANCER
]
WeightScheduler = Annotated[
    ComponentSpec | None,
    PlainValidator(named_or_none(_WEIGHT)),
    _WRITE,
    SCHEMA_OR_NONE,
    _WEIGHT,
    Field(
        description="scheduler that multiplies the weight by a factor that changes over the run; none keeps the "
        "weight constant"
    ),
]
TemperatureScheduler = Annotated[
    ComponentSpec | None, PlainValidator(named_or_none(_TEMPERATURE)), _WRITE, SCHEMA_OR_NONE, _TEMPERATURE
]
