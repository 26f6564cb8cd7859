"""What is distilled: the losses, their weights and schedules, and the matches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import PlainValidator, WithJsonSchema, field_validator, model_validator

from kdplug.config.layer_map import LayerMap, LayerMaps
from kdplug.config.match import IntermediateMatch, no_effect
from kdplug.config.model import (
    LARGEST,
    AnyComponent,
    ConfigModel,
    Count,
    NonNegative,
    Positive,
    Switch,
    TemperatureScheduler,
    WeightScheduler,
    resolve,
    write_component,
)
from kdplug.config.requirement import PluginsConfig
from kdplug.config.words import shown
from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.host.registry import losses, teacher_combiners
from kdplug.host.spec import ComponentSpec

__all__ = ["DistillationConfig", "IntermediateMatch"]

_DEFAULT_KD_LOSS = ComponentSpec("ce")
DEFAULT_COMBINER = ComponentSpec("mean_logits")
"""What combines the logits of several teachers where nothing is said."""


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
    """The configuration of a distillation: TextBrewer's keys and defaults, with every component in three spellings.

    Construction looks names up and imports nothing; ``resolved()`` imports what is named and validates its settings.
    With a scheduler and no weight of its own, the base weight is 1. A kd loss that is left at its default while its
    weight is 0 is never looked up, nor is a teacher combiner that is left at its default: it acts on several teachers only.

    Raises: ``ConfigError`` or ``EntryError`` with the path of each wrong value.
    """

    temperature: Positive = 4.0
    temperature_scheduler: TemperatureScheduler = None
    kd_loss_type: AnyComponent = _DEFAULT_KD_LOSS
    kd_loss_weight: NonNegative = 1.0
    kd_loss_weight_scheduler: WeightScheduler = None
    hard_label_weight: NonNegative = 0.0
    hard_label_weight_scheduler: WeightScheduler = None
    teacher_combiner: AnyComponent = DEFAULT_COMBINER
    logit_chunk: Chunk = "auto"
    padded_vocabulary: Literal["refuse", "drop"] = "refuse"
    probability_shift: Switch = False
    is_caching_logits: Switch = False
    intermediate_matches: tuple[IntermediateMatch, ...] = ()
    layer_map: LayerMaps = ()
    plugins: PluginsConfig = PluginsConfig()

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
                "every term is off: kd_loss_weight and hard_label_weight are 0 and no intermediate match has a weight. "
                "Give one of them a weight above 0"
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
        """The same config with qualified names and every setting of every component. Imports the entries it names.

        Raises: ``EntryError``, ``SettingError`` or ``SignatureError`` with the path of the component or its setting.
        """
        data = self.to_dict()
        for field in ("kd_loss_weight_scheduler", "hard_label_weight_scheduler"):
            data[field] = _resolved(getattr(self, field), "weight_schedulers", None, field)
        data["temperature_scheduler"] = _resolved(
            self.temperature_scheduler, "temperature_schedulers", None, "temperature_scheduler"
        )
        if self.kd_loss_weight or self.kd_loss_type != _DEFAULT_KD_LOSS:
            data["kd_loss_type"] = _resolved(self.kd_loss_type, "losses", "kd", "kd_loss_type")
        if self.teacher_combiner != DEFAULT_COMBINER:
            data["teacher_combiner"] = _resolved(self.teacher_combiner, "teacher_combiners", None, "teacher_combiner")
        data["intermediate_matches"] = [
            _resolved_match(match, ("intermediate_matches", place))
            for place, match in enumerate(self.intermediate_matches)
        ]
        data["layer_map"] = [_resolved_match(one, self.path_of_map(place)) for place, one in enumerate(self.layer_map)]
        return type(self).from_dict(data).written_out()

    def path_of_map(self, place: int) -> tuple[object, ...]:
        """The path of a layer map in the config, for messages."""
        return ("layer_map",) if len(self.layer_map) == 1 else ("layer_map", place)

    def written_out(self) -> Self:
        """The same config with the pairs of each layer map whose layers are counted in the config, in place of the map.

        Raises: ``ConfigError``, ``EntryError``, ``SignatureError`` with the path of a map that makes no pairs.
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
        """The same config with other matches and layer maps."""
        return self.model_copy(update={"intermediate_matches": tuple(matches), "layer_map": tuple(layer_map)})


def _resolved(spec: ComponentSpec | None, plural: str, slot: str | None, *path: object) -> Any:
    if spec is None:
        return None
    try:
        return write_component(resolve(spec, plural, slot))
    except KdplugError as error:
        raise error.at(*path) from error.__cause__


def _resolved_match(match: IntermediateMatch | LayerMap, path: tuple[object, ...]) -> dict[str, Any]:
    data = match.to_dict()
    if isinstance(match, LayerMap):
        data["name"] = _resolved(match.name, "layer_maps", None, *path, "name")
    data["loss"] = _resolved(match.loss, "losses", "match", *path, "loss")
    data["weight_scheduler"] = _resolved(match.weight_scheduler, "weight_schedulers", None, *path, "weight_scheduler")
    if match.proj is not None:
        try:
            data["proj"] = match.proj.resolved().to_data()
        except KdplugError as error:
            raise error.at(*path, "proj") from error.__cause__
    return data
