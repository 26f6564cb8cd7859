"""Config of the objective: losses, their weights and schedules, and matches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from kdplug.config.key import places
from kdplug.config.layer_map import LayerMap, LayerMaps
from kdplug.config.match import IntermediateMatch, ProjectionSpec, no_effect
from kdplug.config.model import (
    HIGHEST,
    LARGEST,
    NONE_SCHEMA,
    ConfigModel,
    Count,
    KdLoss,
    Positive,
    Switch,
    TeacherCombiner,
    TemperatureScheduler,
    Weight,
    WeightScheduler,
    resolve,
    write_component,
)
from kdplug.config.requirement import Plugins, PluginsConfig
from kdplug.config.words import shown
from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.host.registry import losses, teacher_combiners
from kdplug.host.spec import ComponentSpec

__all__ = ["DistillationConfig", "IntermediateMatch"]

_DEFAULT_KD_LOSS = ComponentSpec("ce")
DEFAULT_COMBINER = ComponentSpec("mean_logits")
"""Combiner of several teachers' logits, unless the config names another one."""


def _read_chunk(data: object) -> int | str:
    if data in ("auto", "whole"):
        return str(data)
    if isinstance(data, bool) or not isinstance(data, int) or data < 1:
        near = did_you_mean(data, ("auto", "whole")) if isinstance(data, str) else ""
        raise ConfigError(f"must be a whole number >= 1, auto or whole, got {shown(data)}.{near}".rstrip("."))
    if data > LARGEST:
        raise ConfigError(f"must be <= {LARGEST}, got {shown(data)}")
    return int(data)


Chunk = Annotated[
    Count | Literal["auto", "whole"],
    PlainValidator(_read_chunk),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": LARGEST}, {"enum": ["auto", "whole"]}]}),
]


class DistillationConfig(ConfigModel):
    """Config of a distillation: TextBrewer's keys and defaults; each component may be a name, a list or a mapping.

    Construction looks names up and imports nothing; ``resolved()`` imports the named entries and validates their
    settings. With a scheduler but no weight, the base weight is 1. A default kd loss of weight 0 is not looked up, and
    neither is a default teacher combiner, which acts on several teachers only.

    Raises: ``ConfigError`` or ``EntryError`` with the path of each wrong value.
    """

    temperature: Annotated[Positive, Field(le=HIGHEST)] = Field(
        default=4.0, description="softmax temperature: the kd loss divides the logits of student and teacher by it"
    )
    temperature_scheduler: TemperatureScheduler = Field(
        default=None,
        description="scheduler that computes the temperature of each item from `temperature` and the logits; none uses "
        "`temperature` for all items",
    )
    kd_loss_type: KdLoss = Field(default=_DEFAULT_KD_LOSS, description="loss between the logits of student and teacher")
    kd_loss_weight: Weight = Field(
        default=1.0,
        description=(
            "weight of the kd loss in the total; with a scheduler, the base weight. Without t2, the loss's gradient shrinks "
            "with the square of the temperature, so 1 is a small weight"
        ),
    )
    kd_loss_weight_scheduler: WeightScheduler = None
    hard_label_weight: Weight = Field(
        default=0.0,
        description=(
            "weight of the losses that the student's adaptor returns, such as the cross-entropy with the true labels; 0 disables "
            "them. Defaults to 1 if `hard_label_weight_scheduler` is set"
        ),
    )
    hard_label_weight_scheduler: WeightScheduler = None
    teacher_combiner: TeacherCombiner = Field(
        default=DEFAULT_COMBINER,
        description="function that combines the logits of several teachers; unused with one teacher",
    )
    logit_chunk: Chunk = Field(
        default="auto",
        description="number of items whose logits are computed at once from `FactoredLogits`; `auto` fits a memory budget, "
        "`whole` computes all items at once",
    )
    padded_vocabulary: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="if student and teacher have different numbers of classes: `refuse` raises an error, `drop` removes "
        "the last classes of the longer logits, which pad the vocabulary of a shared tokenizer",
    )
    probability_shift: Switch = Field(
        default=False,
        description="where the teacher's prediction is wrong, swap its highest logit with the logit of the true label",
    )
    is_caching_logits: Switch = Field(
        default=False,
        description="run the teacher once on every example and reuse its logits and matched features in all epochs",
    )
    intermediate_matches: tuple[IntermediateMatch, ...] = Field(
        default=(),
        description="losses between intermediate features of student and teacher, such as hidden states and attention maps",
        json_schema_extra={"type": ["array", "null", "string"], "pattern": NONE_SCHEMA["anyOf"][1]["pattern"]},
    )
    layer_map: LayerMaps = Field(
        default=(),
        description="rule that creates one match per layer pair, such as `{name: uniform, feature: hidden, loss: "
        "hidden_mse}`; a list of such rules; or none",
    )
    plugins: Plugins = PluginsConfig()

    @field_validator("intermediate_matches", mode="before")
    @classmethod
    def _none_is_no_match(cls, data: object) -> object:
        if data is None or (isinstance(data, str) and data.casefold() == "none"):
            return ()
        return data

    @field_validator("kd_loss_type")
    @classmethod
    def _names_a_loss(cls, spec: ComponentSpec) -> ComponentSpec:
        if spec != _DEFAULT_KD_LOSS:
            losses.check(spec, slot="kd")
        return spec

    @field_validator("teacher_combiner")
    @classmethod
    def _names_a_combiner(cls, spec: ComponentSpec) -> ComponentSpec:
        if spec != DEFAULT_COMBINER:
            teacher_combiners.check(spec)
        return spec

    @model_validator(mode="after")
    def _schedules_scale_something(self) -> Self:
        for weight in ("kd_loss_weight", "hard_label_weight"):
            if getattr(self, f"{weight}_scheduler") is None:
                continue
            if weight not in self.model_fields_set:
                self._fill(**{weight: 1.0})
            elif getattr(self, weight) == 0:
                raise ConfigError(no_effect(weight, f"{weight}_scheduler")).at(weight)
        return self

    @model_validator(mode="after")
    def _something_is_on(self) -> Self:
        if not (
            self.kd_loss_weight
            or self.hard_label_weight
            or any(match.weight for match in self.intermediate_matches)
            or any(layer_map.weight for layer_map in self.layer_map)
        ):
            raise ConfigError(
                "every term is disabled: kd_loss_weight and hard_label_weight are 0 and no intermediate match has a "
                "weight. Give one of them a weight above 0"
            )
        return self

    @model_validator(mode="after")
    def _default_loss_is_installed(self) -> Self:
        if self.kd_loss_weight and self.kd_loss_type == _DEFAULT_KD_LOSS:
            try:
                losses.check(self.kd_loss_type, slot="kd")
            except KdplugError as error:
                raise error.at("kd_loss_type") from None
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        seen: dict[str, int] = {}
        for place, match in enumerate(self.intermediate_matches):
            if match.name is not None and match.name in seen:
                message = f"{match.name!r} is already the name of intermediate_matches.{seen[match.name]}"
                raise ConfigError(message).at("intermediate_matches", place, "name")
            if match.name is not None:
                seen[match.name] = place
        return self

    def resolved(self) -> Self:
        """Return the config with qualified names and every setting of every component. Imports the entries it names.

        Raises: ``EntryError``, ``SettingError`` or ``SignatureError`` with the path of the component or its setting.
        """
        data = self.to_dict()
        unused = set()
        if not self.kd_loss_weight and self.kd_loss_type == _DEFAULT_KD_LOSS:
            unused.add("kd_loss_type")
        if self.teacher_combiner == DEFAULT_COMBINER:
            unused.add("teacher_combiner")
        data |= _resolved(self, (), unused)
        data["intermediate_matches"] = [
            {**match.to_dict(), **_resolved(match, ("intermediate_matches", place))}
            for place, match in enumerate(self.intermediate_matches)
        ]
        data["layer_map"] = [
            {**one.to_dict(), **_resolved(one, self.path_of_map(place))} for place, one in enumerate(self.layer_map)
        ]
        return type(self).from_dict(data).written_out()

    def path_of_map(self, place: int) -> tuple[object, ...]:
        """Return the path of a layer map in the config, for messages."""
        return ("layer_map",) if len(self.layer_map) == 1 else ("layer_map", place)

    def written_out(self) -> Self:
        """Return the config with layer maps replaced by their matches, if the config specifies the numbers of layers.

        Raises: ``ConfigError``, ``EntryError``, ``SignatureError`` with the path of a map that fails.
        """
        matches, waiting = list(self.intermediate_matches), []
        for place, one in enumerate(self.layer_map):
            student, teacher = one.indices("S"), one.indices("T")
            if student is None or teacher is None:
                waiting.append(one)
                continue
            try:
                matches += one.matches(student, teacher)
            except KdplugError as error:
                raise error.at(*self.path_of_map(place)) from error.__cause__
        return self.with_matches(matches, waiting)

    def with_matches(self, matches: Iterable[IntermediateMatch], layer_map: Iterable[LayerMap]) -> Self:
        """Return the config with other matches and layer maps."""
        return self.model_copy(update={"intermediate_matches": tuple(matches), "layer_map": tuple(layer_map)})


def _resolved(model: ConfigModel, path: tuple[object, ...], unused: Iterable[str] = ()) -> dict[str, Any]:
    """Return each component of a model with its qualified name and every setting, as plain data."""
    data: dict[str, Any] = {}
    for key, place in places(type(model)).items():
        spec = getattr(model, key)
        if spec is None or key in unused:
            continue
        try:
            if isinstance(spec, ProjectionSpec):
                data[key] = spec.resolved().to_data()
            else:
                data[key] = write_component(resolve(spec, place.plural, place.slot))
        except KdplugError as error:
            raise error.at(*path, key) from error.__cause__
    return data
