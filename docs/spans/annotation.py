"""Types, bounds and defaults as readable text."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_WORDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "true/false",
    str: "text",
    type(None): "none",
    Any: "any",
    Mapping: "mapping",
    dict: "mapping",
}
_NAMED = {
    "ComponentSpec": "component",
    "ProjectionSpec": "projection",
    "PluginsConfig": "mapping",
    "FrozenDict": "mapping",
}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def type_text(annotation: Any) -> str:
    """Return an annotation in words: ``number or none``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(type_text(part) for part in arguments)
        if "number" in words:
            words.pop("integer", None)
        return " or ".join(words)
    if origin is Annotated:
        return f"{type_text(arguments[0])} {_bounds(arguments[1:])}".strip()
    if origin is Literal:
        return ", ".join(f"`{value}`".replace("\t", r"\t") for value in arguments)
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}".replace("integer", "integers")
    name = getattr(annotation, "__name__", str(annotation))
    return _WORDS.get(origin or annotation) or _NAMED.get(name, f"`{name}`")


def field_text(field: FieldInfo) -> str:
    """Return the type of a field with its bounds: ``number, ≥ 0``."""
    return _joined(type_text(field.annotation), _bounds(field.metadata))


def default_text(field: FieldInfo) -> str:
    """Return the default of a field in the notation of a config."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if hasattr(value, "to_data"):
        value = value.to_data()
    if hasattr(value, "to_dict"):
        return "empty"
    words = {None: "none", True: "true", False: "false", (): "[]"}
    return f"`{words.get(value, value) if isinstance(value, (bool, tuple, type(None))) else value}`"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _bounds(rules: Iterable[Any]) -> str:
    nested = [part for rule in rules for part in (rule.metadata if isinstance(rule, FieldInfo) else (rule,))]
    found = ((sign, getattr(rule, name, None)) for rule in nested for name, sign in _SIGNS.items())
    return ", ".join(f"{sign} {_number(bound)}" for sign, bound in found if bound is not None)


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
