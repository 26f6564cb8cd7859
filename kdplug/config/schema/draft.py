"""Convert pydantic's JSON Schema (2020-12) to draft-07, which editors read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import CoreSchema

JsonSchema = dict[str, Any]

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_TYPE = {
    "integer": _NUMERIC,
    "number": _NUMERIC,
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("items", "additionalItems", "minItems", "maxItems", "uniqueItems"),
    "boolean": (),
    "null": (),
}


def model_schema(model: type[BaseModel], prefix: str) -> JsonSchema:
    """Return the schema of a model. ``prefix`` is the JSON pointer of its definitions in the final document.

    A type without a schema, such as a function, accepts any value.
    """
    found: JsonSchema = draft07(
        model.model_json_schema(ref_template=f"#{prefix}/{{model}}", schema_generator=_Generator)
    )
    return found


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default", "skipped-discriminator"}  # noqa: RUF012

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:  # noqa: ARG002
        return {}


def draft07(schema: Any) -> Any:
    """Return ``schema`` with ``definitions``, lists in ``items``, no keyword next to ``$ref``, and finite numbers only."""
    if not isinstance(schema, Mapping):
        return schema
    found: JsonSchema = {}
    for key, value in schema.items():
        if key in _MAPS:
            found["definitions" if key == "$defs" else key] = {name: draft07(part) for name, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            found[key] = [draft07(part) for part in value]
        elif key in _SINGLE:
            found[key] = [draft07(part) for part in value] if isinstance(value, list) else draft07(value)
        elif _is_json(value):
            found[key] = value
    if "prefixItems" in found:
        rest = found.pop("items", None)
        found["items"] = found.pop("prefixItems")
        found |= {} if rest is None else {"additionalItems": rest}
    return _flat(_wrap_reference(found))


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_json, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return not isinstance(value, float) or math.isfinite(value)


def _wrap_reference(schema: JsonSchema) -> JsonSchema:
    """Move ``$ref`` into ``allOf`` if there are other keywords, which draft-07 would ignore."""
    if "$ref" not in schema or len(schema) == 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {"allOf": [{"$ref": schema["$ref"]}, *rest.pop("allOf", [])], **rest}


def extensible(schema: JsonSchema) -> JsonSchema:
    """Return ``schema`` in a form to which keywords can be added."""
    return {"allOf": [schema]} if "$ref" in schema else schema


def _flat(schema: JsonSchema) -> JsonSchema:
    """Merge an ``anyOf`` of plain types into a list of types, so that an error names the value."""
    branches = schema.get("anyOf")
    if not branches or "type" in schema or not all(map(_is_plain, branches)):
        return schema
    merged: JsonSchema = {"type": [branch["type"] for branch in branches]}
    for branch in branches:
        merged |= {key: value for key, value in branch.items() if key != "type"}
    numeric = [branch for branch in branches if branch["type"] in ("integer", "number")]
    bounded = any(len(branch) > 1 for branch in numeric)
    if len(set(merged["type"])) < len(branches) or (len(numeric) > 1 and bounded):
        return schema
    return {**merged, **{key: value for key, value in schema.items() if key != "anyOf"}}


def _is_plain(branch: Any) -> bool:
    kind = branch.get("type") if isinstance(branch, dict) else None
    return isinstance(kind, str) and kind in _OF_TYPE and set(branch) <= {"type", *_OF_TYPE[kind]}


def reference(*parts: str) -> JsonSchema:
    """Return a reference to a definition."""
    return {"$ref": pointer(*parts)}


def pointer(*parts: str) -> str:
    """Return the JSON pointer of a definition, as a URL fragment."""
    return "#/definitions/" + "/".join(map(_escaped, parts))


def _escaped(part: str) -> str:
    from urllib.parse import quote

    return quote(part.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@-._")
