"""Weights of terms: numbers, or shares of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from kdplug.config.model import HIGHEST, Weight
from kdplug.config.words import in_words, shown
from kdplug.errors import ConfigError, UnknownKeyError


@dataclass(frozen=True, slots=True)
class GradientShare:
    """A weight that is given as the term's share of the gradient, in (0, 1]; the balancer computes the weight."""

    share: float


_WEIGHT_NUMBER: TypeAdapter[float] = TypeAdapter(Weight)
_SHARE_KEY = "share"


def _read_weight(data: object) -> float | GradientShare:
    if isinstance(data, GradientShare):
        data = {_SHARE_KEY: data.share}
    if not isinstance(data, Mapping):
        return _number(_WEIGHT_NUMBER, data)
    for key in data:
        if key != _SHARE_KEY:
            raise UnknownKeyError(f"unknown key {shown(key)}. Write a number, or {{share: 0.3}}")
    if _SHARE_KEY not in data:
        raise ConfigError("is empty. Write a number, or {share: 0.3}")
    try:
        share = _number(_WEIGHT_NUMBER, data[_SHARE_KEY])
        if not 0 < share <= 1:
            raise ConfigError(f"must be > 0 and <= 1, got {shown(data[_SHARE_KEY])}")
    except ConfigError as error:
        raise error.at(_SHARE_KEY) from None
    return GradientShare(share)


def _number(kind: TypeAdapter[float], data: object) -> float:
    try:
        return kind.validate_python(data)
    except ValidationError as error:
        raise ConfigError(in_words(dict(error.errors(include_url=False)[0]))) from None


def _write_weight(weight: float | GradientShare) -> Any:
    return {_SHARE_KEY: weight.share} if isinstance(weight, GradientShare) else weight


def base_weight(weight: float | GradientShare) -> float:
    """Return the weight without scheduler and balancer; 1 for a share."""
    return 1.0 if isinstance(weight, GradientShare) else weight


TermWeight = Annotated[
    float | GradientShare,
    PlainValidator(_read_weight),
    PlainSerializer(_write_weight),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": HIGHEST},
                {
                    "type": "object",
                    "required": [_SHARE_KEY],
                    "properties": {_SHARE_KEY: {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
"""The weight of a term: a number, or its share of the gradient."""
