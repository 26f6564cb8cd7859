"""JSON Schema in the constructs of draft-07, which is what editors read, out of pydantic's 2020-12."""

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
    """The schema of a model; ``prefix`` is the JSON pointer of the definitions in the document that it becomes part of.

    What has no schema (a function as the type of a setting, say) takes any value.
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
    """``schema`` with ``definitions``, lists in ``items``, no keyword beside ``$ref``, and no number that JSON lacks."""
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
    return _flat(_beside_ref(found))


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_json, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return not isinstance(value, float) or math.isfinite(value)


def _beside_ref(schema: JsonSchema) -> JsonSchema:
    """Draft-07 ignores whatever stands beside ``$ref``."""
    if "$ref" not in schema or len(schema) == 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {"allOf": [{"$ref": schema["$ref"]}, *rest.pop("allOf", [])], **rest}


def beside(schema: JsonSchema) -> JsonSchema:
    """``schema`` in a form that other keywords may stand beside."""
    return {"allOf": [schema]} if "$ref" in schema else schema


def _flat(schema: JsonSchema) -> JsonSchema:
    """``anyOf`` of plain types as one list of types, so that an error names the place and not the ``anyOf``."""
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
    """A reference to a place below ``definitions``."""
    return {"$ref": pointer(*parts)}


def pointer(*parts: str) -> str:
    """The JSON pointer, as the fragment of an address, of a place below ``definitions``."""
    return "#/definitions/" + "/".join(map(_escaped, parts))


def _escaped(part: str) -> str:
    from urllib.parse import quote

    return quote(part.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@-._")
