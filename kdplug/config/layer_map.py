"""Config of layer maps: rules that pair student and teacher layers, in place of a match for each pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, PlainSerializer, WrapValidator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import CoreSchema

from kdplug.config.layer import Layer, PatternField
from kdplug.config.match import Feature, IntermediateMatch, Projection, TeacherField, scales_something
from kdplug.config.model import (
    NONE_SCHEMA,
    ConfigModel,
    Count,
    LayerMapComponent,
    MatchLoss,
    Switch,
    Weight,
    WeightScheduler,
    is_none,
)
from kdplug.config.words import shown
from kdplug.contracts.vocabulary import FEATURES
from kdplug.errors import ConfigError, KdplugError, SignatureError
from kdplug.host.registry import layer_maps

Side = Literal["S", "T"]


class LayerMap(ConfigModel):
    """A rule that creates matches: ``{name: uniform, feature: hidden, loss: hidden_mse, proj: [linear, auto, auto]}``.

    Keys shared with ``IntermediateMatch`` apply to each match of the map.
    """

    name: LayerMapComponent = Field(description="rule that pairs layers of the student with layers of the teacher")
    loss: MatchLoss = Field(description="loss of each match")
    feature: Feature = Field(
        default="hidden",
        description="feature to compare: `hidden` or `attention`; required unless both sides are module paths",
    )
    weight: Weight = Field(default=1.0, description="weight of each match; with a scheduler, the base weight")
    weight_scheduler: WeightScheduler = None
    proj: Projection = Field(
        default=None, description="projection of each match, from the student's feature to the teacher's width"
    )
    layers_T: Count | None = Field(  # noqa: N815  the sides are called T and S throughout
        default=None,
        description="number of the teacher's layers; by default counted in `layer_T` or in the first batch",
    )
    layers_S: Count | None = Field(default=None, description="number of the student's layers; see `layers_T`")  # noqa: N815
    layer_T: PatternField = Field(  # noqa: N815
        default=None, description="layers of the teacher as module paths or globs, such as `encoder.layer.*`"
    )
    layer_S: PatternField = Field(default=None, description="layers of the student; see `layer_T`")  # noqa: N815
    embeddings: Switch | None = Field(
        default=None,
        description="whether the first layer is the output of the embeddings; by default true only for `hidden` from an "
        "adaptor",
    )
    teacher: TeacherField = None

    @model_validator(mode="after")
    def _one_source_of_layers(self) -> Self:
        for side in ("T", "S"):
            if getattr(self, f"layers_{side}") is not None and getattr(self, f"layer_{side}") is not None:
                raise ConfigError(f"layer_{side} already determines the number of layers: remove layers_{side}").at(
                    f"layers_{side}"
                )
        if "feature" not in self.model_fields_set and (self.layer_S is None or self.layer_T is None):
            raise ConfigError(f"is required ({' or '.join(FEATURES)}) unless both layer_S and layer_T are set").at(
                "feature"
            )
        return self

    _scales = model_validator(mode="after")(scales_something)

    def has_embeddings(self, side: Side) -> bool:
        """Return whether the first layer of a side is the output of its embeddings."""
        if self.embeddings is not None:
            return self.embeddings
        return self.feature == "hidden" and getattr(self, f"layer_{side}") is None

    def indices(self, side: Side) -> tuple[int, ...] | None:
        """Return the layer indices of a side, or ``None`` if the config does not determine them."""
        count = getattr(self, f"layers_{side}")
        return None if count is None else tuple(range(count + self.has_embeddings(side)))

    def matches(self, student: tuple[Layer, ...], teacher: tuple[Layer, ...]) -> tuple[IntermediateMatch, ...]:
        """Return the matches between ``student`` and ``teacher``, the layers of each side in order. Imports the map.

        Raises: ``EntryError``, ``SettingError``; ``ConfigError`` if the map does not apply to these layers;
        ``SignatureError`` if it returns anything but pairs of existing layers.
        """
        shared = IntermediateMatch.model_fields.keys() - {"name", "layer_S", "layer_T"}
        data = {key: value for key, value in self.to_dict().items() if key in shared}
        return tuple(
            IntermediateMatch.from_dict({**data, "layer_S": student[ours], "layer_T": teacher[theirs]})
            for ours, theirs in self._pairs(len(student), len(teacher))
        )

    def _pairs(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Return pairs of positions. Layer 1 is at position 0 without embeddings, and at position 1 with them."""
        offsets = 0 if self.has_embeddings("S") else 1, 0 if self.has_embeddings("T") else 1
        counts = student - 1 + offsets[0], teacher - 1 + offsets[1]
        try:
            component = layer_maps.build(self.name)
            if min(counts) < 1:
                raise ConfigError("there are no layers to match")
            pairs = _checked(
                component(student_layers=counts[0], teacher_layers=counts[1]), counts, component.entry.qualified
            )
            for side, offset, numbers in zip(("student", "teacher"), offsets, zip(*pairs, strict=True), strict=True):
                if offset and 0 in numbers:
                    raise ConfigError(
                        f"{component.entry.qualified} matches layer 0, the output of the embeddings, but the {side}'s layers "
                        "are assumed to start at layer 1. If they start with the embeddings, set embeddings: true in "
                        "the layer map, next to feature; otherwise choose a map without layer 0"
                    )
        except KdplugError as error:
            if isinstance(error, ConfigError) and not error.field:
                error.message += self._how_counted(*counts)
            raise error.at("name") from error.__cause__
        return [(ours - offsets[0], theirs - offsets[1]) for ours, theirs in pairs]

    def _how_counted(self, student: int, teacher: int) -> str:
        sides: tuple[Side, Side] = ("S", "T")
        guessed = any(self.has_embeddings(side) and getattr(self, f"layers_{side}") is None for side in sides)
        if self.embeddings is not None or not guessed:
            return f"   ({student} student layers, {teacher} teacher layers)"
        return (
            f"   ({student} student layers and {teacher} teacher layers after the embeddings, which are assumed to be "
            "the first hidden state; if they are not, set embeddings: false in the layer map)"
        )


def _checked(found: Any, counts: tuple[int, int], owner: str) -> list[tuple[int, int]]:
    try:
        pairs = [(ours, theirs) for ours, theirs in found]
    except (TypeError, ValueError):
        pairs = []
    for pair in pairs:
        if not all(type(number) is int and 0 <= number <= count for number, count in zip(pair, counts, strict=True)):
            raise SignatureError(
                f"{owner} returned {pair}, which is not a valid pair of layers. The student's layers are 0 to {counts[0]}, the "
                f"teacher's 0 to {counts[1]}"
            )
    if not pairs:
        raise SignatureError(f"{owner} must return pairs of layer numbers, student first, got {shown(found)}")
    return pairs


def _read_maps(data: object, handler: Any) -> tuple[LayerMap, ...]:  # noqa: ARG001  so that errors name the map
    if is_none(data):
        return ()
    if not isinstance(data, (list, tuple)):
        return (_read_map(data),)
    found = []
    for place, one in enumerate(data):
        try:
            found.append(_read_map(one))
        except KdplugError as error:
            raise error.at(place) from error.__cause__
    return tuple(found)


def _read_map(data: object) -> LayerMap:
    if isinstance(data, LayerMap):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be a mapping such as {{name: uniform, feature: hidden, loss: …}}, got {shown(data)}")
    return LayerMap.from_dict(data)


def _write_maps(maps: tuple[LayerMap, ...]) -> Any:
    found = [one.to_dict() for one in maps]
    return found[0] if len(found) == 1 else found or None


class _OneOrMany:
    """JSON Schema of one map, a list of maps, or none."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        one = handler(schema)["items"]
        single = {"if": {"type": "object"}, "then": one, "else": NONE_SCHEMA}
        return {"if": {"type": "array"}, "then": {"items": one}, "else": single}


LayerMaps = Annotated[
    tuple[LayerMap, ...], WrapValidator(_read_maps), PlainSerializer(_write_maps, return_type=Any), _OneOrMany
]
"""Layer maps in a config: a mapping, a list of mappings, or none."""
