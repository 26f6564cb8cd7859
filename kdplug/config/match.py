"""One intermediate match: a loss wired to a student feature and a teacher feature."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from kdplug.config.component import MatchLoss, WeightScheduler
from kdplug.config.model import ConfigModel
from kdplug.config.projection import Projection
from kdplug.config.scalar import NonNegative, Text
from kdplug.config.words import shown
from kdplug.contracts.vocabulary import FEATURES
from kdplug.errors import ConfigError, did_you_mean

TERM_NAMES = ("kd_loss", "hard_label_loss")
"""The names of the terms that are no matches."""

Layers = int | tuple[int, ...]


def _read_layers(data: object) -> Layers:
    if isinstance(data, (list, tuple)):
        if not data:
            raise ConfigError("an empty list names no layer")
        return tuple(_index(item, place) for place, item in enumerate(data))
    return _index(data)


def _index(value: object, *place: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"must be the index of a layer, or a list of them, got {shown(value)}").at(*place)
    return int(value)


def _read_feature(data: object) -> str:
    if not isinstance(data, str) or data not in FEATURES:
        near = did_you_mean(data, FEATURES) if isinstance(data, str) else ""
        raise ConfigError(f"must be {' or '.join(map(repr, FEATURES))}, got {shown(data)}.{near}".rstrip("."))
    return data


def _read_name(data: str | None) -> str | None:
    if data in TERM_NAMES:
        raise ConfigError(f"{data!r} is the name of another term")
    if data is not None and not data.strip():
        raise ConfigError("must not be blank")
    return data


LayerField = Annotated[
    Layers,
    PlainValidator(_read_layers),
    PlainSerializer(lambda layers: list(layers) if isinstance(layers, tuple) else layers),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "array", "minItems": 1, "items": {"type": "integer"}}]}),
]
Feature = Annotated[str, PlainValidator(_read_feature), WithJsonSchema({"type": "string", "enum": list(FEATURES)})]
MatchName = Annotated[Text | None, AfterValidator(_read_name)]


class IntermediateMatch(ConfigModel):
    """A loss between what the teacher's layer ``layer_T`` and the student's layer ``layer_S`` compute.

    Both layers are indices into what the adaptors return as ``feature`` (negative ones count from the end), or both are
    lists of them for a loss that takes several features at once. ``weight`` is multiplied with ``weight_scheduler``;
    ``proj`` maps the student's feature to the teacher's width; ``name`` names the term in reports.
    """

    layer_T: LayerField  # noqa: N815  TextBrewer's key
    layer_S: LayerField  # noqa: N815  TextBrewer's key
    feature: Feature
    loss: MatchLoss
    weight: NonNegative = 1.0
    weight_scheduler: WeightScheduler = None
    proj: Projection = None
    name: MatchName = None

    @model_validator(mode="after")
    def _layers_pair_up(self) -> Self:
        teacher, student = self.layer_T, self.layer_S
        if isinstance(teacher, tuple) != isinstance(student, tuple):
            raise ConfigError(
                f"layer_T and layer_S must both be indices or both be lists, got {_both(teacher, student)}"
            )
        if isinstance(teacher, tuple) and isinstance(student, tuple) and len(teacher) != len(student):
            raise ConfigError(f"layer_T and layer_S must be equally long, got {_both(teacher, student)}")
        return self

    @model_validator(mode="after")
    def _schedule_scales_something(self) -> Self:
        if self.weight_scheduler is not None and self.weight == 0:
            raise ConfigError(no_effect("weight", "weight_scheduler")).at("weight")
        return self


def no_effect(weight: str, scheduler: str) -> str:
    """What to say of a scheduler whose base weight is 0."""
    return f"is 0, so {scheduler} has no effect. Leave {weight} out for a base weight of 1, or drop {scheduler}"


def _both(teacher: Any, student: Any) -> str:
    plain = [list(side) if isinstance(side, tuple) else side for side in (teacher, student)]
    return f"{plain[0]} and {plain[1]}"
