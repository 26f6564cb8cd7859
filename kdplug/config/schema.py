"""JSON Schema (draft-07) of recipes and configs, for editors: with every installed plugin and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kdplug.config.distillation import DistillationConfig
from kdplug.config.model import ConfigModel
from kdplug.config.recipe import Recipe
from kdplug.config.schema_component import Catalogue, Place, place_of
from kdplug.config.schema_doc import MEANINGS
from kdplug.config.schema_draft import JsonSchema, beside, model_schema
from kdplug.config.schema_rule import FIELDS, RULES
from kdplug.config.training import TrainingConfig
from kdplug.host.active import active
from kdplug.host.entry import Entry

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
