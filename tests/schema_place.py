"""A recipe put before the JSON Schema and before kdplug: where each of them says that something is wrong."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from jsonschema import Draft7Validator

from kdplug.config.recipe import Recipe
from kdplug.errors import KdplugError
from kdplug.host.registry import tasks


def place(error: Any) -> str:
    """Where an error is, as kdplug writes it: a key that lacks or should not be there is the place itself."""
    path = [str(part) for part in error.absolute_path]
    if error.validator == "required":
        path.append(error.message.split("'")[1])
    if error.validator == "additionalProperties":
        path += sorted(set(error.instance) - set(error.schema.get("properties", {})))
    return ".".join(path)


def places(validator: Draft7Validator, data: Any) -> set[str]:
    return {place(error) for error in validator.iter_errors(data)}


def refused(data: dict[str, Any]) -> str | None:
    """The place that kdplug names, ``None`` where it would run the recipe."""
    try:
        recipe = Recipe.from_dict(data)
        try:
            recipe.distillation.resolved()
        except KdplugError as error:
            raise error.at("distillation") from error
        try:
            tasks.build(recipe.task)
        except KdplugError as error:
            raise error.at("task") from error
    except KdplugError as error:
        return error.field
    return None


def changed(recipe: dict[str, Any], **parts: Any) -> dict[str, Any]:
    data = deepcopy(recipe)
    for part, value in parts.items():
        data[part] = {**data[part], **value} if isinstance(value, dict) and isinstance(data.get(part), dict) else value
    return data


MATCH = {"layer_T": 10, "layer_S": 3, "feature": "hidden", "loss": "hidden_mse"}


def matches(*more: dict[str, Any]) -> dict[str, Any]:
    return {"distillation": {"intermediate_matches": [{**MATCH, **one} for one in more]}}


AT = "distillation.intermediate_matches.0"
