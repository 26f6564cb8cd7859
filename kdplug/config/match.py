"""One intermediate match: a loss between a student feature and a teacher feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from kdplug.config.key import Place
from kdplug.config.layer import LayerField, check_pair, in_list, is_path
from kdplug.config.model import (
    COMPONENT_SCHEMA,
    LARGEST,
    ConfigModel,
    FrozenDict,
    MatchLoss,
    Text,
    WeightScheduler,
    freeze,
    is_none,
    read_component,
    resolve,
    thaw,
    write_component,
)
from kdplug.config.weight import TermWeight
from kdplug.config.words import shown
from kdplug.contracts.vocabulary import FEATURES
from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.registry import projections
from kdplug.host.spec import ComponentSpec, Form

Width = int | Literal["auto"]

WIDEST = 1 << 24
"""Largest width of a feature."""

_EXAMPLE = "[linear, 384, 768] or [linear, 384, 768, {lr: 1.0e-3}], student width first"
_KEYS = ("in_dim", "out_dim", "options")
OPTIONS_AT_LEAST_0 = ("lr", "weight_decay", "eps", "momentum", "dampening")
OPTIONS_REFUSED = {
    **dict.fromkeys(("params", "param_names"), "is set by kdplug. Remove this option"),
    "learning_rate": "unknown optimizer option. Did you mean 'lr'?",
}


@dataclass(frozen=True, slots=True)
class ProjectionSpec:
    """A projection by name.

    ``in_dim`` is the student's width, ``out_dim`` the teacher's; ``"auto"`` takes it from the features. ``options``
    are those of the projection's own optimizer parameter group; ``form`` is its spelling in the config.
    """

    component: ComponentSpec
    in_dim: Width = "auto"
    out_dim: Width = "auto"
    options: Mapping[str, Any] = field(default_factory=FrozenDict)
    form: Form = "list"

    def to_data(self) -> Any:
        """Return new plain data in the spelling of the config."""
        component, options = write_component(self.component), thaw(self.options)
        rest = {"options": options} if options else {}
        if self.form == "name" and isinstance(component, str) and self.in_dim == self.out_dim == "auto" and not rest:
            return component
        if self.form == "mapping" and not self.component.args:
            widths = {"name": self.component.name, "in_dim": self.in_dim, "out_dim": self.out_dim}
            return {**widths, **rest, **thaw(self.component.settings)}
        return [component, self.in_dim, self.out_dim, *rest.values()]

    def resolved(self) -> ProjectionSpec:
        """Return the projection with its qualified name and every setting. Imports the entry."""
        component = resolve(self.component, "projections")
        return ProjectionSpec(component, self.in_dim, self.out_dim, self.options)


def read_projection(data: object) -> ProjectionSpec:
    """Read a frozen projection from ``name``, ``[name, in, out]``, ``[name, in, out, {options}]`` or a mapping.

    The first element of a list may itself be a component with settings. ``data`` is not changed.

    Raises: ``ConfigError`` for any other form; ``EntryError`` for an unknown name.
    """
    if isinstance(data, ProjectionSpec):
        data = data.to_data()
    if isinstance(data, ComponentSpec):
        data = data.name if data.form == "name" and not data.args and not data.settings else [data, "auto", "auto"]
    if isinstance(data, str):
        found = ProjectionSpec(read_component(data), form="name")
    elif isinstance(data, (list, tuple)):
        found = _from_list(list(data))
    elif isinstance(data, Mapping):
        found = _from_mapping(data)
    else:
        raise ConfigError(f"cannot read {shown(data)} as a projection. Write a name, or {_EXAMPLE}")
    projections.check(found.component)
    return found


def _from_list(data: list[Any]) -> ProjectionSpec:
    if len(data) not in (3, 4):
        counted = f"{len(data)} element{'' if len(data) == 1 else 's'}"
        alone = f". Write {data[0]!r} alone for automatic widths" if len(data) == 1 and isinstance(data[0], str) else ""
        raise ConfigError(
            f"a projection is [name, student width, teacher width] and may end in {{optimizer options}}, "
            f"got {counted}: {shown(data)}. Example: {_EXAMPLE}{alone}"
        )
    return ProjectionSpec(
        _component(data[0], 0),
        _width(data[1], "student", 1),
        _width(data[2], "teacher", 2),
        _options(data[3], 3) if len(data) == 4 else FrozenDict(),
    )


def _from_mapping(data: Mapping[Any, Any]) -> ProjectionSpec:
    return ProjectionSpec(
        read_component({key: value for key, value in data.items() if key not in _KEYS}),
        _width(data.get("in_dim", "auto"), "student", "in_dim"),
        _width(data.get("out_dim", "auto"), "teacher", "out_dim"),
        _options(data.get("options", {}), "options"),
        "mapping",
    )


def _component(data: object, place: int) -> ComponentSpec:
    try:
        return read_component(data)
    except ConfigError as error:
        raise error.at(place) from None


def _width(value: object, side: str, place: int | str) -> Width:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        if value > WIDEST:
            raise ConfigError(f"the {side} width must be <= {WIDEST}, got {shown(value)}").at(place)
        return int(value)
    near = did_you_mean(value, ["auto"]) if isinstance(value, str) else ""
    message = f"the {side} width must be a whole number >= 1, or auto, got {shown(value)}.{near}"
    raise ConfigError(message.rstrip(".")).at(place)


def _options(value: object, place: int | str) -> Mapping[str, Any]:
    try:
        return _checked_options(value)
    except ConfigError as error:
        raise error.at(place) from None


def _checked_options(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a mapping of optimizer options, such as {{lr: 1.0e-3}}, got {shown(value)}")
    options: Mapping[str, Any] = freeze(value)
    for key, option in options.items():
        _check_option(key, option)
    return options


def _check_option(key: str, value: object) -> None:
    """Check one option of a parameter group.

    Options that the optimizer does not support are detected when it is built.
    """
    if key in OPTIONS_REFUSED:
        raise ConfigError(OPTIONS_REFUSED[key]).at(key)
    if isinstance(value, Mapping):
        raise ConfigError(f"must be a number, true, false, null or a list of numbers, got {shown(thaw(value))}").at(key)
    if key not in OPTIONS_AT_LEAST_0:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"must be a number, got {shown(value)}").at(key)
    if value < 0:
        raise ConfigError(f"must be >= 0, got {shown(value)}").at(key)


OptimizerOptions = Annotated[
    Mapping[str, Any] | None,
    PlainValidator(lambda data: None if data is None else _checked_options(data)),
    PlainSerializer(thaw),
    WithJsonSchema(
        {
            "type": ["null", "object"],
            "properties": {
                **{name: {"not": {}} for name in OPTIONS_REFUSED},
                **{name: {"type": "number", "minimum": 0} for name in OPTIONS_AT_LEAST_0},
            },
            "additionalProperties": {"not": {"type": "object"}},
        }
    ),
]
"""Options of a parameter group of the optimizer, or none."""


def _read_or_none(data: object) -> ProjectionSpec | None:
    return None if is_none(data) else read_projection(data)


def _write(spec: ProjectionSpec | None) -> Any:
    return None if spec is None else spec.to_data()


_WIDTH_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": WIDEST}, {"const": "auto"}]}
_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "null"},
        {"type": "string", "minLength": 1},
        {
            "type": "array",
            "minItems": 3,
            "maxItems": 4,
            "items": [COMPONENT_SCHEMA, _WIDTH_SCHEMA, _WIDTH_SCHEMA, {"type": "object"}],
        },
        {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "in_dim": _WIDTH_SCHEMA,
                "out_dim": _WIDTH_SCHEMA,
                "options": {"type": "object"},
            },
        },
    ]
}

Projection = Annotated[
    ProjectionSpec | None,
    PlainValidator(_read_or_none),
    PlainSerializer(_write),
    WithJsonSchema(_SCHEMA),
    Place("projections", optional=True),
]


TERM_NAMES = ("kd_loss", "hard_label_loss")
"""Names of the terms that are not matches."""


def _read_feature(data: object) -> str:
    if not isinstance(data, str) or data not in FEATURES:
        near = did_you_mean(data, FEATURES) if isinstance(data, str) else ""
        raise ConfigError(f"must be {' or '.join(map(repr, FEATURES))}, got {shown(data)}.{near}".rstrip("."))
    return data


def _read_name(data: str | None) -> str | None:
    if data in TERM_NAMES:
        raise ConfigError(f"{data!r} is the name of a built-in term. Choose another name")
    if data is not None and not data.strip():
        raise ConfigError("must not be blank")
    return data


def _read_teacher(data: object) -> int | str | None:
    if data is None or (isinstance(data, str) and data.strip()):
        return data
    if isinstance(data, bool) or not isinstance(data, int) or data < 0:
        raise ConfigError(f"must be the index of a teacher, from 0, or its key, got {shown(data)}")
    if data > LARGEST:
        raise ConfigError(f"must be <= {LARGEST}, got {shown(data)}")
    return int(data)


FEATURE_REQUIRED = f"is required ({' or '.join(FEATURES)}) unless both layer_S and layer_T are module paths"
Feature = Annotated[str, PlainValidator(_read_feature), WithJsonSchema({"type": "string", "enum": list(FEATURES)})]
TeacherField = Annotated[
    int | str | None,
    PlainValidator(_read_teacher),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "null"},
                {"type": "integer", "minimum": 0, "maximum": LARGEST},
                {"type": "string", "pattern": r"\S"},
            ]
        }
    ),
    Field(description="teacher whose feature is compared, by index or key; required with several teachers"),
]


def no_effect(weight: str, scheduler: str) -> str:
    """Return the message for a scheduler whose base weight is 0."""
    return f"is 0, so {scheduler} has no effect. Leave {weight} out for a base weight of 1, or remove {scheduler}"


_Scheduled = TypeVar("_Scheduled", bound=ConfigModel)


def scales_something(model: _Scheduled) -> _Scheduled:
    """Return a model with a weight, and raise ``ConfigError`` for a scheduler of a weight of 0."""
    data: Any = model
    if data.weight_scheduler is not None and data.weight == 0:
        raise ConfigError(no_effect("weight", "weight_scheduler")).at("weight")
    return model


class IntermediateMatch(ConfigModel):
    """A loss between the outputs of the teacher's layer ``layer_T`` and the student's layer ``layer_S``.

    A layer is an index into the list ``feature`` of the adaptor (negative ones count from the end), or the path of a
    module, whose output is captured: ``encoder.layer.3``, ``encoder.layer.3:output[1]``, ``encoder.layer.3:input[0]``.
    Both sides are lists for a loss that takes several features at once; in a list, a glob means all modules it matches.
    """

    layer_T: LayerField = Field(  # noqa: N815  TextBrewer's key
        description="layer of the teacher: index into the adaptor's outputs (negative from the end), module path, or a list"
    )
    layer_S: LayerField = Field(description="layer of the student, in the same forms")  # noqa: N815  TextBrewer's key
    feature: Feature = Field(
        default="hidden",
        description="feature to compare: `hidden` or `attention`; required unless both layers are module paths",
    )
    loss: MatchLoss = Field(description="loss between the two features")
    weight: TermWeight = Field(
        default=1.0,
        description="weight of the match; with a scheduler, the base weight. `{share: 0.3}` gives the match this share of the "
        "gradient: the weight is computed before training",
    )
    weight_scheduler: WeightScheduler = None
    proj: Projection = Field(default=None, description="projection of the student's feature to the teacher's width")
    name: Annotated[Text | None, AfterValidator(_read_name)] = Field(
        default=None,
        description="name of the term in reports; defaults to `feature_loss_S_T`",
        json_schema_extra={"pattern": r"\S", "not": {"enum": list(TERM_NAMES)}},
    )
    teacher: TeacherField = None

    @model_validator(mode="after")
    def _layers_pair_up(self) -> Self:
        check_pair(self.layer_T, self.layer_S)
        return self

    @model_validator(mode="after")
    def _indices_need_a_feature(self) -> Self:
        layers = (*in_list(self.layer_T), *in_list(self.layer_S))
        if "feature" not in self.model_fields_set and not all(map(is_path, layers)):
            raise ConfigError(FEATURE_REQUIRED).at("feature")
        return self

    _scales = model_validator(mode="after")(scales_something)
