"""Config of the objective: losses, their weights and schedules, and matches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from kdplug.config.key import KeyFacts, keys_replaced_by, places
from kdplug.config.layer_map import LayerMap, LayerMaps
from kdplug.config.match import IntermediateMatch, ProjectionSpec, no_effect
from kdplug.config.model import (
    LARGEST,
    NONE_SCHEMA,
    BalancerComponent,
    ConfigModel,
    Count,
    KdLoss,
    Switch,
    TeacherCombiner,
    Temperature,
    TemperatureScheduler,
    Weight,
    WeightScheduler,
    is_none,
    resolve,
    write_component,
)
from kdplug.config.requirement import Plugins, PluginsConfig
from kdplug.config.teacher import TeacherUpdateComponent
from kdplug.config.term import (
    KD_LOSS,
    KD_PLACE,
    NO_SCHEDULER,
    TermConfig,
    TermPlace,
    WrittenTerm,
    compares_logits,
    named_terms,
)
from kdplug.config.weight import GradientShare, base_weight
from kdplug.config.words import shown
from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.host.registry import balancers, losses, teacher_combiners
from kdplug.host.spec import ComponentSpec

__all__ = ["DistillationConfig", "IntermediateMatch"]

_DEFAULT_KD_LOSS = ComponentSpec("ce")
_SHARE = ComponentSpec("share")
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


def _read_terms(data: object, handler: Any) -> tuple[TermConfig, ...] | None:
    if is_none(data):
        return None
    found: tuple[TermConfig, ...] = handler(data)
    if not found:
        raise ConfigError("the list is empty: name at least one loss, such as {loss: kl}")
    return found


Terms = Annotated[
    tuple[TermConfig, ...] | None,
    WrapValidator(_read_terms),
]


_REPLACED = KeyFacts(replaced_by="terms")


class TermTemperature(NamedTuple):
    """Temperature of a term, and its scheduler."""

    base: float
    scheduler: ComponentSpec | None


class DistillationConfig(ConfigModel):
    """Config of a distillation: TextBrewer's keys and defaults; each component may be a name, a list or a mapping.

    Construction looks names up and imports nothing; ``resolved()`` imports the named entries and validates their
    settings. With a scheduler but no weight, the base weight is 1. A default kd loss of weight 0 is not looked up, and
    neither is a default teacher combiner, which acts on several teachers only.

    Raises: ``ConfigError`` or ``EntryError`` with the path of each wrong value.
    """

    temperature: Temperature = Field(
        default=4.0, description="softmax temperature: the kd loss divides the logits of student and teacher by it"
    )
    temperature_scheduler: TemperatureScheduler = Field(
        default=None,
        description="scheduler that computes the temperature, one for all items or one for each; none uses `temperature` "
        "for all items",
    )
    kd_loss_type: Annotated[KdLoss, _REPLACED] = Field(
        default=_DEFAULT_KD_LOSS, description="loss between the logits of student and teacher"
    )
    kd_loss_weight: Annotated[Weight, _REPLACED] = Field(
        default=1.0,
        description=(
            "weight of the kd loss in the total; with a scheduler, the base weight. Without t2, the loss's gradient shrinks "
            "with the square of the temperature, so 1 is a small weight"
        ),
    )
    kd_loss_weight_scheduler: Annotated[WeightScheduler, _REPLACED] = None
    hard_label_weight: Weight = Field(
        default=0.0,
        description=(
            "weight of the losses that the student's adaptor returns, such as the cross-entropy with the true labels; 0 disables "
            "them. Defaults to 1 if `hard_label_weight_scheduler` is set"
        ),
    )
    hard_label_weight_scheduler: WeightScheduler = None
    balancer: BalancerComponent = Field(
        default=None,
        description="balancer, which sets a factor of every term's weight after each optimizer step; none keeps the weights. "
        "Defaults to `share` if the weight of a term is a share",
    )
    teacher_combiner: TeacherCombiner = Field(
        default=DEFAULT_COMBINER,
        description="function that combines the logits of several teachers; unused with one teacher",
    )
    teacher_update: TeacherUpdateComponent = Field(
        default=None,
        description="function that computes the teacher's parameters from the student's after each optimizer step, such as "
        "`{name: ema, decay: 0.999}`; both models must have the same architecture. None keeps the teacher fixed",
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
    terms: Terms = Field(
        default=None,
        description="the losses of the distillation as one list, in place of `kd_loss_type` and `kd_loss_weight`: each has a "
        "weight, and may have its own temperature, heads or layers",
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
        return () if is_none(data) else data

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
        weights = [self.hard_label_weight, *(base_weight(one.weight) for one in self.intermediate_matches)]
        weights += [one.weight for one in self.layer_map]
        if any(weights) or any(self._kd_weights):
            return self
        on_logits = "kd_loss_weight" if self.terms is None else "the weight of each term"
        raise ConfigError(
            f"every term is disabled: {on_logits} and hard_label_weight are 0 and no intermediate match has a weight. Set "
            "at least one weight above 0"
        )

    @model_validator(mode="after")
    def _updated_teachers_run_live(self) -> Self:
        if self.teacher_update is not None and self.is_caching_logits:
            raise ConfigError(
                f"{self.teacher_update.name!r} changes the teacher in each step, so its outputs cannot be cached. Set "
                "is_caching_logits to false and remove teacher_cache, or remove teacher_update"
            ).at("teacher_update")
        return self

    @property
    def _kd_weights(self) -> tuple[float, ...]:
        """The weights of ``terms``, or of the kd loss without them."""
        return (self.kd_loss_weight,) if self.terms is None else tuple(base_weight(term.weight) for term in self.terms)

    @model_validator(mode="after")
    def _terms_replace_the_kd_loss(self) -> Self:
        given = [key for key in keys_replaced_by(type(self), "terms") if key in self.model_fields_set]
        if self.terms is not None and given:
            raise ConfigError(
                f"cannot be combined with {' and '.join(given)}. Write the kd loss as one of the terms, such as "
                "{loss: kl, weight: 1}"
            ).at("terms")
        if self.terms is not None:
            self._fill(kd_loss_weight=0.0)
        return self

    @model_validator(mode="after")
    def _default_loss_is_installed(self) -> Self:
        if self.terms is None and self.kd_loss_weight and self.kd_loss_type == _DEFAULT_KD_LOSS:
            try:
                losses.check(self.kd_loss_type, slot="kd")
            except KdplugError as error:
                raise error.at("kd_loss_type") from None
        return self

    @model_validator(mode="after")
    def _shares_have_a_balancer(self) -> Self:
        if self.balancer is None and (shares := self._shares()):
            try:
                balancers.check(_SHARE)
            except KdplugError as error:
                raise error.at(*shares[0], "weight", "share") from None
        return self

    def _listed(self) -> list[tuple[str, int, TermConfig | IntermediateMatch]]:
        return [
            (key, at, one)
            for key in ("terms", "intermediate_matches")
            for at, one in enumerate(getattr(self, key) or ())
        ]

    def _shares(self) -> list[tuple[str, int]]:
        """Return the places of the terms whose weights are shares."""
        return [(key, place) for key, place, one in self._listed() if isinstance(one.weight, GradientShare)]

    @property
    def used_balancer(self) -> ComponentSpec | None:
        """The balancer; ``share`` if none is named and the weight of a term is a share."""
        return _SHARE if self.balancer is None and self._shares() else self.balancer

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        seen: dict[str, str] = {}
        for key, at, one in self._listed():
            if one.name is not None and one.name in seen:
                message = f"{one.name!r} is already the name of {seen[one.name]}. Choose another name"
                raise ConfigError(message).at(key, at, "name")
            if one.name is not None:
                seen[one.name] = f"{key}.{at}"
        return self

    @model_serializer(mode="wrap")
    def _without_unused_spelling(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write ``terms`` or the keys that they replace, not both."""
        unused = ("terms",) if self.terms is None else keys_replaced_by(type(self), "terms")
        return {key: value for key, value in write(self).items() if key not in unused}

    def written_terms(self) -> tuple[WrittenTerm, ...]:
        """Return the kd loss or ``terms``, then the intermediate matches, as terms in the order in which they are summed."""
        found: list[tuple[TermConfig, TermPlace]] = []
        if self.terms is not None:
            found += [(term, TermPlace(("terms", place), own=term.own_keys)) for place, term in enumerate(self.terms)]
        elif self.kd_loss_weight:
            found.append((self._kd_term(), KD_PLACE))
        for place, match in enumerate(self.intermediate_matches):
            found.append((TermConfig.of_match(match), TermPlace(("intermediate_matches", place))))
        return named_terms(found)

    def _kd_term(self) -> TermConfig:
        return TermConfig(
            name=KD_LOSS,
            loss=self.kd_loss_type,
            weight=self.kd_loss_weight,
            weight_scheduler=self.kd_loss_weight_scheduler,
        )

    def resolved(self) -> Self:
        """Return the config with qualified names and every setting of every component. Imports the entries it names.

        Raises: ``EntryError``, ``SettingError`` or ``SignatureError`` with the path of the component or its setting.
        """
        unused = set()
        if self.kd_loss_weight or self.kd_loss_type == _DEFAULT_KD_LOSS:
            unused.add("kd_loss_type")
        if self.teacher_combiner == DEFAULT_COMBINER:
            unused.add("teacher_combiner")
        given = self if self.used_balancer is None else self.model_copy(update={"balancer": self.used_balancer})
        data = self.to_dict() | _resolved(given, TermPlace(), unused)
        data["layer_map"] = [
            {**one.to_dict(), **_resolved(one, TermPlace(self.path_of_map(place)))}
            for place, one in enumerate(self.layer_map)
        ]
        found = type(self).from_dict(data).written_out()
        names = [written.name for written in self.written_out().written_terms()]
        terms = [
            _resolved_term(found, written, name) for written, name in zip(found.written_terms(), names, strict=True)
        ]
        if not terms:
            return found
        data = found.to_dict() | {"terms": terms, "intermediate_matches": []}
        return type(self).from_dict(
            {key: value for key, value in data.items() if key not in keys_replaced_by(type(self), "terms")}
        )

    def temperature_of(self, term: TermConfig) -> TermTemperature:
        """Return the temperature of a term and its scheduler, which default to those of the config."""
        scheduler = self.temperature_scheduler if term.temperature_scheduler is None else term.temperature_scheduler
        return TermTemperature(
            self.temperature if term.temperature is None else term.temperature,
            None if scheduler == NO_SCHEDULER else scheduler,
        )

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


def _resolved_term(config: DistillationConfig, written: WrittenTerm, name: str) -> dict[str, Any]:
    """Return a term as plain data, with every setting, its own name and the temperature that its loss requests."""
    data = {
        **written.config.to_dict(),
        **_resolved(written.config, written.place, ("temperature_scheduler",)),
        "name": name,
    }
    term = written.config
    inputs = losses.entry(term.loss.name, term.slot).inputs
    if "temperature" not in inputs and not (compares_logits(term, inputs) and written.place.own):
        return data
    temperature = config.temperature_of(term)
    scheduler = temperature.scheduler
    try:
        found = None if scheduler is None else resolve(scheduler, "temperature_schedulers")
    except KdplugError as error:
        raise written.place.locate(error.at("temperature_scheduler")) from error.__cause__
    return data | {"temperature": temperature.base, "temperature_scheduler": write_component(found)}


def _resolved(model: ConfigModel, where: TermPlace, unused: Iterable[str] = ()) -> dict[str, Any]:
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
                slot = model.slot if isinstance(model, TermConfig) and key == "loss" else place.slot
                data[key] = write_component(resolve(spec, place.plural, slot))
        except KdplugError as error:
            raise where.locate(error.at(key)) from error.__cause__
    return data
