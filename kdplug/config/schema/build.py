"""JSON Schema (draft-07) of recipes and configs, for editors: with every installed plugin and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kdplug.config.distillation import DistillationConfig
from kdplug.config.match import TERM_NAMES
from kdplug.config.model import ConfigModel
from kdplug.config.recipe import Recipe
from kdplug.config.schema.component import NONE, Catalogue, Place, place_of
from kdplug.config.schema.doc import MEANINGS
from kdplug.config.schema.draft import JsonSchema, beside, model_schema, reference
from kdplug.config.training import TrainingConfig
from kdplug.host.active import active
from kdplug.host.entry import Entry

_ABOVE_0: JsonSchema = {"not": {"const": 0}}
_GIVEN: JsonSchema = {"not": NONE}


def _scheduled(weight: str, scheduler: str) -> JsonSchema:
    """A weight of 0 with a scheduler has no effect."""
    return {
        "if": {"required": [scheduler], "properties": {scheduler: _GIVEN}},
        "then": {"properties": {weight: _ABOVE_0}},
    }


_A_WEIGHT: JsonSchema = {
    "type": "object",
    "not": {"required": ["weight"], "properties": {"weight": {"const": 0}}},
}
_A_WEIGHT_IN_LIST: JsonSchema = {"type": "array", "contains": _A_WEIGHT}
_SOMETHING_IS_ON: JsonSchema = {
    "$comment": "not every term may have the weight 0",
    "if": {"required": ["kd_loss_weight"], "properties": {"kd_loss_weight": {"const": 0}}},
    "then": {
        "anyOf": [
            {"required": ["hard_label_weight"], "properties": {"hard_label_weight": _ABOVE_0}},
            {
                "required": ["hard_label_weight_scheduler"],
                "properties": {"hard_label_weight_scheduler": _GIVEN},
            },
            {"required": ["intermediate_matches"], "properties": {"intermediate_matches": _A_WEIGHT_IN_LIST}},
            {"required": ["layer_map"], "properties": {"layer_map": {"anyOf": [_A_WEIGHT_IN_LIST, _A_WEIGHT]}}},
        ]
    },
}
_ARRAY: JsonSchema = {"type": "array"}
_SINGLE: JsonSchema = {"not": {"type": "array"}}
_GLOB: JsonSchema = {"type": "string", "pattern": r"^[^:@]*[*?\[]"}
_BOTH_OR_NEITHER: JsonSchema = {
    "$comment": "layer_T and layer_S are both lists or both none, but for globs; that lists are equally long cannot be said",
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


def _one_source(side: str) -> JsonSchema:
    """Modules that are named need not be counted."""
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
    "$comment": "fp16 says the same as precision, or nothing",
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
    ],
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
"""Model to rules between its fields."""

_DEVICE: JsonSchema = {"type": "string", "pattern": r"^(auto|cpu|mps|cuda(:\d+)?)$"}
_FP16_FIELD: JsonSchema = {"type": "boolean", "description": "TextBrewer's spelling of `precision: fp16`"}

_PATH = r"^[^:@\s.]+(\.[^:@\s.]+)*(@-?\d+)?(:(output|input)(\[-?\d+\]|\.[A-Za-z_]\w*)*)?$"
_LAYERS: JsonSchema = {
    "type": ["integer", "string", "array"],
    "pattern": _PATH,
    "minItems": 1,
    "items": {"type": ["integer", "string"], "pattern": _PATH},
}
_PATHS: JsonSchema = {**_LAYERS, "type": ["null", "string", "array"], "items": {"type": "string", "pattern": _PATH}}
_MAPS: JsonSchema = {
    "if": _ARRAY,
    "then": {"items": reference("LayerMap")},
    "else": {"if": {"type": "object"}, "then": reference("LayerMap"), "else": NONE},
}

FIELDS: dict[str, dict[str, JsonSchema]] = {
    "DistillationConfig": {
        "intermediate_matches": {"type": ["array", "null", "string"], "pattern": NONE["anyOf"][1]["pattern"]},
        "layer_map": _MAPS,
    },
    "LayerMap": {"layer_T": _PATHS, "layer_S": _PATHS},
    "IntermediateMatch": {
        "layer_T": _LAYERS,
        "layer_S": _LAYERS,
        "name": {"pattern": r"\S", "not": {"enum": list(TERM_NAMES)}},
    },
    "TrainingConfig": {"device": _DEVICE, "fp16": _FP16_FIELD},
    "RecipeTraining": {
        "device": _DEVICE,
        "fp16": _FP16_FIELD,
        "optimizer": {"pattern": r"^[A-Za-z_]\w*$"},
        "lr_schedule": {"type": ["string", "null"], "enum": ["none", "linear", "cosine", None]},
    },
}
"""Model to field to what its type in Python does not tell, because a validator reads more or asks for more."""


Part = Literal["recipe", "distillation", "training"]

MODELS: dict[Part, type[ConfigModel]] = {
    "recipe": Recipe,
    "distillation": DistillationConfig,
    "training": TrainingConfig,
}

_NO_DEFAULT = (("Recipe", "output_dir"),)  # it depends on the task
_COMPONENT_DEFAULTS = {"kd_loss_type": "ce", "teacher_combiner": "mean_logits", "proj": None}


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema, and a sentence for each entry that cannot be used, whose settings are therefore not in it."""

    data: JsonSchema
    errors: tuple[str, ...]


def every_entry(_: Entry) -> bool:
    """Import every entry."""
    return True


def no_entry(_: Entry) -> bool:
    """Import no entry."""
    return False


def schema_of(part: Part, load: Callable[[Entry], bool] = every_entry) -> Schema:
    """The schema of one kind of file.

    ``load`` says which entries are imported for their settings; of the others only names are checked. It accepts a bare
    name that means one entry, and every qualified name, in the spelling of its package. One that cannot be imported keeps
    its name.
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
    made = f"made by kdplug schema with {', '.join(named) or 'no plugin'}"
    return ". ".join([made, *(["without the settings of what cannot be used: " + "; ".join(errors)] if errors else [])])


def _complete(name: str, model: JsonSchema, catalogue: Catalogue) -> None:
    """Put in what pydantic cannot know: components, meanings, rules between fields."""
    fields: dict[str, JsonSchema] = model["properties"]
    model["description"] = model.get("description", "").split("\n\n")[0].replace("\n", " ")
    for field, own in FIELDS.get(name, {}).items():
        fields[field] = {**_plain(fields.get(field, {})), **own}
    for field, schema in fields.items():
        place = place_of(name, field)
        if place is not None:
            fields[field] = _component(place, field, schema, catalogue)
        if (name, field) in _NO_DEFAULT:
            schema.pop("default", None)
        meaning = MEANINGS.get(name, {}).get(field)
        if meaning is not None:
            fields[field] = {**beside(fields[field]), "description": meaning}
    if name in RULES:
        model["allOf"] = RULES[name]


def _plain(schema: JsonSchema) -> JsonSchema:
    return {key: value for key, value in schema.items() if key != "anyOf"}


def _component(place: Place, field: str, schema: JsonSchema, catalogue: Catalogue) -> JsonSchema:
    default: dict[str, Any] = {"default": _COMPONENT_DEFAULTS.get(field, "none")} if "default" in schema else {}
    return {"allOf": [catalogue.at(place)], **default}
