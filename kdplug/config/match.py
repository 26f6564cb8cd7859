"""One intermediate match: a loss wired to a student feature and a teacher feature."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, PlainValidator, WithJsonSchema, model_validator

from kdplug.config.component import MatchLoss, WeightScheduler
from kdplug.config.layer import LayerField, check_pair, in_list, is_path
from kdplug.config.model import ConfigModel
from kdplug.config.projection import Projection
from kdplug.config.scalar import LARGEST, NonNegative, Text
from kdplug.config.words import shown
from kdplug.contracts.vocabulary import FEATURES
from kdplug.errors import ConfigError, did_you_mean

TERM_NAMES = ("kd_loss", "hard_label_loss")
"""The names of the terms that are no matches."""


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


def _read_teacher(data: object) -> int | str | None:
    if data is None or (isinstance(data, str) and data.strip()):
        return data
    if isinstance(data, bool) or not isinstance(data, int) or data < 0:
        raise ConfigError(f"must be the index of a teacher, from 0, or its key, got {shown(data)}")
    if data > LARGEST:
        raise ConfigError(f"must be <= {LARGEST}, got {shown(data)}")
    return int(data)


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
]
MatchName = Annotated[Text | None, AfterValidator(_read_name)]


class IntermediateMatch(ConfigModel):
    """A loss between what the teacher's layer ``layer_T`` and the student's layer ``layer_S`` compute.

    A layer is an index into what the adaptor returns as ``feature`` (negative ones count from the end), or the path of a
    module, whose output is captured: ``encoder.layer.3``, ``encoder.layer.3:output[1]``, ``encoder.layer.3:input[0]``. Both
    sides are lists for a loss that takes several features at once; in a list, a glob stands for all modules it matches.
    ``feature`` may be left out where both sides are paths. ``weight`` is multiplied with ``weight_scheduler``;
    ``proj`` maps the student's feature to the teacher's width; ``name`` names the term in reports; ``teacher`` is the index
    or the key of the teacher that is read, which must be given where there are several.
    """

    layer_T: LayerField  # noqa: N815  TextBrewer's key
    layer_S: LayerField  # noqa: N815  TextBrewer's key
    feature: Feature = "hidden"
    loss: MatchLoss
    weight: NonNegative = 1.0
    weight_scheduler: WeightScheduler = None
    proj: Projection = None
    name: MatchName = None
    teacher: TeacherField = None

    @model_validator(mode="after")
    def _layers_pair_up(self) -> Self:
        check_pair(self.layer_T, self.layer_S)
        return self

    @model_validator(mode="after")
    def _indices_need_a_feature(self) -> Self:
        layers = (*in_list(self.layer_T), *in_list(self.layer_S))
        if "feature" not in self.model_fields_set and not all(map(is_path, layers)):
            raise ConfigError("is required").at("feature")
        return self

    @model_validator(mode="after")
    def _schedule_scales_something(self) -> Self:
        if self.weight_scheduler is not None and self.weight == 0:
            raise ConfigError(no_effect("weight", "weight_scheduler")).at("weight")
        return self


def no_effect(weight: str, scheduler: str) -> str:
    """What to say of a scheduler whose base weight is 0."""
    return f"is 0, so {scheduler} has no effect. Leave {weight} out for a base weight of 1, or drop {scheduler}"
