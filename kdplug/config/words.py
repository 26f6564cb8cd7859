"""Turn a pydantic error into one short sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdplug.errors import did_you_mean
from kdplug.host.name import shown

__all__ = ["in_words", "shown"]

_BOUNDS = {
    "greater_than_equal": ("ge", ">="),
    "greater_than": ("gt", ">"),
    "less_than_equal": ("le", "<="),
    "less_than": ("lt", "<"),
}

_LARGEST = 2**53
"""Largest number that a hint writes as an integer: a float holds no larger one exactly."""

_TRUTH_WORDS = ("yes", "no", "on", "off", "true", "false", "y", "n")


def in_words(error: Mapping[str, Any]) -> str:
    """Return one entry of ``ValidationError.errors()`` as ``must be …, got …``, with a hint for common mistakes."""
    kind, value = error["type"], error["input"]
    context: dict[str, Any] = error.get("ctx") or {}
    if kind in _BOUNDS:
        bound, sign = _BOUNDS[kind]
        limit = context[bound]
        return f"must be {sign} {limit if isinstance(limit, int) else f'{limit:g}'}, got {shown(value)}"
    if kind == "missing":
        return "is required"
    if kind == "literal_error":
        return f"must be {context['expected']}, got {shown(value)}.{_nearest(value, str(context['expected']))}".rstrip(
            "."
        )
    if kind == "string_too_long":
        return f"must be text of at most {context['max_length']} characters, got {len(value)}: {shown(value)}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, got {shown(value)}{_hint(kind, value)}"
    text = str(error["msg"]).removeprefix("Value error, ")
    text = text.replace("Input should ", "must ", 1) if text.startswith("Input should ") else text
    return f"{text[:1].lower()}{text[1:]}, got {shown(value)}"


_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "invalid_key": "text, like every key",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _nearest(value: object, expected: str) -> str:
    """Return a did-you-mean from pydantic's ``'a', 'b' or 'c'``."""
    return (
        did_you_mean(value, expected.replace(" or ", ", ").replace("'", "").split(", "))
        if isinstance(value, str)
        else ""
    )


def _hint(kind: str, value: object) -> str:
    if kind in ("float_type", "int_type"):
        if isinstance(value, bool):
            return ". A boolean is not a number"
        number = _number(value)
        if number is not None and (kind == "float_type" or (number.is_integer() and abs(number) <= _LARGEST)):
            quotes = " without quotes" if isinstance(value, str) else ""
            return f". Write it{quotes}: {int(number) if kind == 'int_type' else f'{number:g}'}"
    if kind == "bool_type" and isinstance(value, str) and value.casefold() in _TRUTH_WORDS:
        return ". Write true or false, without quotes"
    return ""


def _number(value: object) -> float | None:
    """Return the finite number that is written in text or held by a float."""
    if not isinstance(value, (str, float)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
