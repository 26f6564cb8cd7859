"""JSON Schema (draft-07) of recipes and configs, for editors. It includes the settings of every installed plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic.fields import FieldInfo

from kdplug.config.distillation import DistillationConfig
from kdplug.config.key import Place, keys_replaced_by, keys_that_need, places, written_default
from kdplug.config.layer_map import LayerMap
from kdplug.config.match import IntermediateMatch
from kdplug.config.model import NONE_SCHEMA, ConfigModel
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.schema.component import Catalogue
from kdplug.config.schema.draft import JsonSchema, model_schema, reference
from kdplug.config.stage import CACHING, StageConfig
from kdplug.config.student import StudentConfig
from kdplug.config.term import TermConfig
from kdplug.config.training import TrainingConfig
from kdplug.host.active import active
from kdplug.host.entry import Entry

_ABOVE_0: JsonSchema = {"not": {"const": 0}}
_GIVEN: JsonSchema = {"not": NONE_SCHEMA}


def _scheduled(weight: str, scheduler: str) -> JsonSchema:
    """Reject a scheduler on a weight of 0."""
    return {
        "if": {"required": [scheduler], "properties": {scheduler: _GIVEN}},
        "then": {"properties": {weight: _ABOVE_0}},
    }


_A_WEIGHT: JsonSchema = {
    "type": "object",
    "not": {"required": ["weight"], "properties": {"weight": {"const": 0}}},
}
_A_WEIGHT_IN_LIST: JsonSchema = {"type": "array", "contains": _A_WEIGHT}
_TERMS: JsonSchema = {"required": ["terms"], "properties": {"terms": {"type": "array"}}}
_TERMS_REPLACE_THE_KD_LOSS: JsonSchema = {
    "$comment": "terms cannot be combined with the keys of the kd loss",
    "if": _TERMS,
    "then": {"properties": {key: {"not": {}} for key in keys_replaced_by(DistillationConfig, "terms")}},
}
_SOMETHING_IS_ON: JsonSchema = {
    "$comment": "not every term may have the weight 0",
    "if": {
        "anyOf": [{"required": ["kd_loss_weight"], "properties": {"kd_loss_weight": {"const": 0}}}, _TERMS],
    },
    "then": {
        "anyOf": [
            {"required": ["hard_label_weight"], "properties": {"hard_label_weight": _ABOVE_0}},
            {
                "required": ["hard_label_weight_scheduler"],
                "properties": {"hard_label_weight_scheduler": _GIVEN},
            },
            {"required": ["terms"], "properties": {"terms": _A_WEIGHT_IN_LIST}},
            {"required": ["intermediate_matches"], "properties": {"intermediate_matches": _A_WEIGHT_IN_LIST}},
            {"required": ["layer_map"], "properties": {"layer_map": {"anyOf": [_A_WEIGHT_IN_LIST, _A_WEIGHT]}}},
        ]
    },
}
_ARRAY: JsonSchema = {"type": "array"}
_SINGLE: JsonSchema = {"not": {"type": "array"}}
_GLOB: JsonSchema = {"type": "string", "pattern": r"^[^:@]*[*?\[]"}
_BOTH_OR_NEITHER: JsonSchema = {
    "$comment": "layer_T and layer_S must both be lists or both single layers, except for globs; lengths are not checked",
    "anyOf": [
        {"properties": {"layer_T": teacher, "layer_S": student}}
        for teacher, student in ((_ARRAY, _ARRAY), (_SINGLE, _SINGLE), (_ARRAY, _GLOB), (_GLOB, _ARRAY))
    ],
}
_INDEX: JsonSchema = {"anyOf": [{"type": "integer"}, {"type": "array", "contains": {"type": "integer"}}]}
_INDICES_NEED_A_FEATURE: JsonSchema = {
    "if": {"anyOf": [{"required": [side], "properties": {side: _INDEX}} for side in ("layer_T", "layer_S")]},
    "then": {"required": ["feature"]},
}
_COUNTS_NEED_A_FEATURE: JsonSchema = {
    "if": {"anyOf": [{"properties": {side: {"type": "null"}}} for side in ("layer_T", "layer_S")]},
    "then": {"required": ["feature"]},
}


_WITH_LAYERS: JsonSchema = {
    "anyOf": [{"required": [side], "properties": {side: {"not": {"type": "null"}}}} for side in ("layer_T", "layer_S")]
}
_LAYERS_OF_BOTH: JsonSchema = {
    "if": _WITH_LAYERS,
    "then": {
        "required": ["layer_T", "layer_S"],
        "properties": {side: {"not": {"type": "null"}} for side in ("layer_T", "layer_S")},
        "allOf": [_BOTH_OR_NEITHER, _INDICES_NEED_A_FEATURE],
    },
}
_FEATURE_NEEDS_LAYERS: JsonSchema = {
    "if": {"not": _WITH_LAYERS},
    "then": {"properties": {"feature": {"not": {}}, "proj": {"type": "null"}}},
}


def _one_source(side: str) -> JsonSchema:
    """Reject ``layers_T`` or ``layers_S`` if ``layer_T`` or ``layer_S`` already lists the layers of that side."""
    return {
        "if": {"required": [f"layer_{side}"], "properties": {f"layer_{side}": {"not": {"type": "null"}}}},
        "then": {"properties": {f"layers_{side}": {"type": "null"}}},
    }


_ONE_LENGTH: JsonSchema = {
    "$comment": "exactly one of num_epochs and num_steps",
    "oneOf": [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in ("num_epochs", "num_steps")
    ],
}
_FP16: JsonSchema = {
    "$comment": "fp16 must agree with precision",
    "if": {"required": ["precision"]},
    "then": {
        "if": {"properties": {"precision": {"const": "fp16"}}},
        "then": {"properties": {"fp16": {"enum": [True]}}},
        "else": {"properties": {"fp16": {"enum": [False]}}},
    },
}

RULES: dict[str, list[JsonSchema]] = {
    "DistillationConfig": [
        _scheduled("kd_loss_weight", "kd_loss_weight_scheduler"),
        _scheduled("hard_label_weight", "hard_label_weight_scheduler"),
        _SOMETHING_IS_ON,
        _TERMS_REPLACE_THE_KD_LOSS,
    ],
    "TermConfig": [_scheduled("weight", "weight_scheduler"), _LAYERS_OF_BOTH, _FEATURE_NEEDS_LAYERS],
    "IntermediateMatch": [_scheduled("weight", "weight_scheduler"), _BOTH_OR_NEITHER, _INDICES_NEED_A_FEATURE],
    "LayerMap": [
        _scheduled("weight", "weight_scheduler"),
        _COUNTS_NEED_A_FEATURE,
        _one_source("T"),
        _one_source("S"),
    ],
    "TrainingConfig": [_FP16],
    "RecipeTraining": [_FP16, _ONE_LENGTH],
}
"""Rules between the fields of a model, by the name of the model."""

Part = Literal["recipe", "distillation", "training"]

MODELS: dict[Part, type[ConfigModel]] = {
    "recipe": Recipe,
    "distillation": DistillationConfig,
    "training": TrainingConfig,
}

_WITH_COMPONENTS = (
    Recipe,
    RecipeTraining,
    TrainingConfig,
    DistillationConfig,
    TermConfig,
    IntermediateMatch,
    LayerMap,
    StudentConfig,
)
_BY_NAME = {model.__name__: model for model in _WITH_COMPONENTS}


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema. ``errors`` has a sentence for each unusable entry, whose settings the schema lacks."""

    data: JsonSchema
    errors: tuple[str, ...]


def every_entry(_: Entry) -> bool:
    """Import every entry."""
    return True


def no_entry(_: Entry) -> bool:
    """Import no entry."""
    return False


def schema_of(part: Part, load: Callable[[Entry], bool] = every_entry) -> Schema:
    """Return the schema of one kind of file.

    ``load`` selects the entries that are imported for their settings; of the others only names are checked. The schema
    accepts a bare name that identifies exactly one entry, and every qualified name, in the spelling of its package. The
    name of an entry that cannot be imported is still accepted.
    """
    catalogue = Catalogue(load)
    root = model_schema(MODELS[part], "/definitions")
    models = {MODELS[part].__name__: root, **root.pop("definitions", {})}
    for name, model in models.items():
        _complete(name, model, catalogue)
    del models[MODELS[part].__name__]
    header = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": _comment(catalogue.errors),
        "title": f"kdplug {part}",
    }
    rest = {key: value for key, value in root.items() if key != "title"}
    return Schema({**header, **rest, "definitions": {**models, **catalogue.definitions}}, tuple(catalogue.errors))


def _comment(errors: list[str]) -> str:
    host = active()
    named = [f"{dist.name} {dist.version}" for dist in host.dists if dist not in host.left_out]
    made = f"generated by kdplug schema with {', '.join(named) or 'no plugin'}"
    return ". ".join([made, *(["without the settings of unusable entries: " + "; ".join(errors)] if errors else [])])


def _complete(name: str, model: JsonSchema, catalogue: Catalogue) -> None:
    """Add what pydantic cannot express: components and rules between fields."""
    fields: dict[str, JsonSchema] = model["properties"]
    model["description"] = model.get("description", "").split("\n\n")[0].replace("\n", " ")
    config = _BY_NAME.get(name, ConfigModel)
    for key, place in places(config).items():
        fields[key] = _component(place, config.model_fields[key], catalogue)
    if name == StageConfig.__name__:
        for key, model_of in (("distillation", DistillationConfig), ("training", RecipeTraining)):
            fields[key] = {**fields[key], **_part_of(model_of)}
    if name in RULES:
        model["allOf"] = RULES[name]


def _part_of(model: type[ConfigModel]) -> JsonSchema:
    """Return the schema of some keys of a model, as a stage writes them. The rules between keys hold for all of them only."""
    shared = (*keys_that_need(model, CACHING), CACHING)
    keys = [key for key in model.model_fields if key not in shared]
    found: JsonSchema = {"properties": {key: reference(model.__name__, "properties", key) for key in keys}}
    if "precision" in keys:
        found["properties"]["fp16"] = reference(model.__name__, "properties", "fp16")
    return {**found, "additionalProperties": False}


def _component(place: Place, field: FieldInfo, catalogue: Catalogue) -> JsonSchema:
    default = {} if field.is_required() else {"default": written_default(field)}
    if place.many:
        return {"type": ["array", "null"], "items": catalogue.at(place), "description": field.description, **default}
    return {"allOf": [catalogue.at(place)], "description": field.description, **default}
