"""A rule that stands in for hand-written matches: which layer learns from which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import GetJsonSchemaHandler, PlainSerializer, WrapValidator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import CoreSchema

from kdplug.config.layer import Layer, PatternField
from kdplug.config.match import Feature, IntermediateMatch, Projection, TeacherField, no_effect
from kdplug.config.model import (
    ConfigModel,
    Count,
    LayerMapComponent,
    MatchLoss,
    NonNegative,
    Switch,
    WeightScheduler,
    is_none,
)
from kdplug.config.words import shown
from kdplug.errors import ConfigError, KdplugError, SignatureError
from kdplug.host.registry import layer_maps

Side = Literal["S", "T"]


class LayerMap(ConfigModel):
    """Matches by rule: ``{name: uniform, feature: hidden, loss: hidden_mse, proj: [linear, auto, auto]}``.

    ``name`` is the layer map, a component; ``feature``, ``loss``, ``weight``, ``weight_scheduler``, ``proj`` and ``teacher``
    are those of each match that it makes. The number of layers is ``layers_S`` and ``layers_T``, or that of the modules which
    ``layer_S`` and ``layer_T`` name (``encoder.layer.*``, also read from there), or else what the adaptors return on the first
    batch. ``embeddings`` says whether the layers begin with what the embeddings put out, which is taken for true of
    ``hidden`` as an adaptor returns it, and for false of all else.
    """

    name: LayerMapComponent
    loss: MatchLoss
    feature: Feature = "hidden"
    weight: NonNegative = 1.0
    weight_scheduler: WeightScheduler = None
    proj: Projection = None
    layers_T: Count | None = None  # noqa: N815  the sides are called T and S throughout
    layers_S: Count | None = None  # noqa: N815
    layer_T: PatternField = None  # noqa: N815
    layer_S: PatternField = None  # noqa: N815
    embeddings: Switch | None = None
    teacher: TeacherField = None

    @model_validator(mode="after")
    def _one_source_of_layers(self) -> Self:
        for side in ("T", "S"):
            if getattr(self, f"layers_{side}") is not None and getattr(self, f"layer_{side}") is not None:
                raise ConfigError(f"layer_{side} names the modules, so their number needs no layers_{side}").at(
                    f"layers_{side}"
                )
        if "feature" not in self.model_fields_set and (self.layer_S is None or self.layer_T is None):
            raise ConfigError("is required").at("feature")
        return self

    @model_validator(mode="after")
    def _schedule_scales_something(self) -> Self:
        if self.weight_scheduler is not None and self.weight == 0:
            raise ConfigError(no_effect("weight", "weight_scheduler")).at("weight")
        return self

    def has_embeddings(self, side: Side) -> bool:
        """Whether the layers of a side begin with what its embeddings put out."""
        if self.embeddings is not None:
            return self.embeddings
        return self.feature == "hidden" and getattr(self, f"layer_{side}") is None

    def indices(self, side: Side) -> tuple[int, ...] | None:
        """What there is to read on a side where the config alone says so."""
        count = getattr(self, f"layers_{side}")
        return None if count is None else tuple(range(count + self.has_embeddings(side)))

    def matches(self, student: tuple[Layer, ...], teacher: tuple[Layer, ...]) -> tuple[IntermediateMatch, ...]:
        """The matches, out of what there is to read on each side in the order of the layers. Imports the map.

        Raises: ``EntryError``, ``SettingError``; ``ConfigError`` where the map does not fit these layers; ``SignatureError``
        where it returns anything but pairs of layers that exist.
        """
        own = ("loss", "feature", "weight", "weight_scheduler", "proj", "teacher")
        data = {key: value for key, value in self.to_dict().items() if key in own}
        return tuple(
            IntermediateMatch.from_dict({**data, "layer_S": student[ours], "layer_T": teacher[theirs]})
            for ours, theirs in self._pairs(len(student), len(teacher))
        )

    def _pairs(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Places in what there is to read: layer 1 comes first where there are no embeddings, and second otherwise."""
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
                        f"{component.entry.qualified} matches layer 0, what the embeddings put out, but the {side}'s layers "
                        "are taken to begin with layer 1. If they begin with the embeddings, write embeddings: true"
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
            f"   ({student} student layers and {teacher} teacher layers after the embeddings, which hidden states are taken "
            "to begin with; if these do not, write embeddings: false)"
        )


def _checked(found: Any, counts: tuple[int, int], owner: str) -> list[tuple[int, int]]:
    try:
        pairs = [(ours, theirs) for ours, theirs in found]
    except (TypeError, ValueError):
        pairs = []
    for pair in pairs:
        if not all(type(number) is int and 0 <= number <= count for number, count in zip(pair, counts, strict=True)):
            raise SignatureError(
                f"{owner} returned {pair}, which is no pair of layers: student 0 to {counts[0]}, teacher 0 to {counts[1]}"
            )
    if not pairs:
        raise SignatureError(f"{owner} must return pairs of layer numbers, student first, got {shown(found)}")
    return pairs


def _read_maps(data: object, handler: Any) -> tuple[LayerMap, ...]:  # noqa: ARG001  each map has its own place in an error
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
    """One map, a list of them, or none, in JSON Schema."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        listed = handler(schema)
        return {"anyOf": [{"type": "null"}, listed["items"], listed]}


LayerMaps = Annotated[
    tuple[LayerMap, ...], WrapValidator(_read_maps), PlainSerializer(_write_maps, return_type=Any), _OneOrMany
]
"""The type of a config field that holds layer maps: a mapping, a list of them, or none."""
