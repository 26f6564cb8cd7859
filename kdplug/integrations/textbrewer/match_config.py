"""One intermediate match, as TextBrewer's config holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from kdplug.contracts.vocabulary import FEATURES
from kdplug.errors import ConfigError, KdplugError, UnknownKeyError, did_you_mean
from kdplug.host.seed_map import PROJ_MAP

_KEYS = ("layer_T", "layer_S", "weight", "loss", "feature", "proj")


class IntermediateMatch:
    """A loss between a feature of the teacher's layer and one of the student's.

    ``proj`` is ``[name, width of the student, width of the teacher]`` and, at will, the options of its optimizer group.
    The caller's list stays as it is; ``proj`` here always has four elements.

    Raises: ``ConfigError``.
    """

    def __init__(
        self,
        layer_T: int | list[int],
        layer_S: int | list[int],
        weight: float,
        loss: Any,
        feature: str,
        proj: list[Any] | None = None,
    ) -> None:
        if feature not in FEATURES:
            raise ConfigError(
                f"must be one of {', '.join(FEATURES)}, got {feature!r}.{did_you_mean(str(feature), FEATURES)}",
                field="feature",
            )
        self.layer_T = _layer(layer_T, "layer_T")
        self.layer_S = _layer(layer_S, "layer_S")
        if isinstance(self.layer_T, list) != isinstance(self.layer_S, list):
            raise ConfigError(f"one of layer_T {layer_T!r} and layer_S {layer_S!r} is a list. Give two lists, or none")
        self.feature = feature
        self.weight = weight
        self.loss = loss
        self.proj = _projection(proj) if proj else None

    @classmethod
    def read(cls, match: Mapping[str, Any], place: int) -> Self:
        """The match at ``place`` in a config. Raises: ``ConfigError`` with the path of what is wrong."""
        try:
            return cls.from_dict(match)
        except KdplugError as error:
            raise error.at("intermediate_matches", place) from error.__cause__

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """The match that a mapping of the arguments describes."""
        for key in dict_object:
            if key not in _KEYS:
                raise UnknownKeyError(f"there is no such key.{did_you_mean(str(key), _KEYS)}", field=str(key))
        if missing := [key for key in _KEYS[:-1] if key not in dict_object]:
            raise ConfigError("missing", field=missing[0])
        return cls(**dict_object)

    def __str__(self) -> str:
        return ", ".join(f"{name} : {value}" for name, value in vars(self).items())

    def __repr__(self) -> str:
        return f"\n{type(self).__name__}: {self}"


def _layer(layer: Any, field: str) -> int | list[int]:
    if isinstance(layer, (list, tuple)) and layer and all(type(index) is int for index in layer):
        return list(layer)
    if type(layer) is not int:
        raise ConfigError(f"must be a layer's index or a list of them, got {layer!r}", field=field)
    return layer


def _projection(proj: Any) -> list[Any]:
    shown = f"[name, width of the student, width of the teacher, options], got {proj!r}"
    if not isinstance(proj, (list, tuple)) or len(proj) < 3 or not all(type(width) is int for width in proj[1:3]):
        raise ConfigError(f"must be {shown}", field="proj")
    if len(proj) > 3 and not isinstance(proj[3], dict):
        raise ConfigError(f"the fourth element must be a dict of optimizer options: {shown}", field="proj")
    name, student, teacher, *rest = proj
    try:
        PROJ_MAP[name]
    except KdplugError as error:
        raise error.at("proj") from error.__cause__
    return [name, student, teacher, dict(rest[0]) if rest else {}]
