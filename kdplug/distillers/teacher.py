"""Teachers and their adaptors as users write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kdplug.engine.pair import Adaptor
from kdplug.engine.teacher import Teacher
from kdplug.errors import ConfigError

Models = Sequence[nn.Module] | Mapping[str, nn.Module] | nn.ModuleList | nn.ModuleDict
Adaptors = Adaptor | Sequence[Adaptor | None] | Mapping[str, Adaptor | None] | None


def read_teachers(models: Any, adaptors: Any) -> dict[str, Teacher]:
    """Teachers by key, each with its adaptor; those of a list have the keys ``"0"``, ``"1"``…

    Raises: ``ConfigError`` for anything but a list or mapping of models, and for adaptors that do not go with them.
    """
    by_key = _models(models)
    names = {key: f"teacher {key!r}" if len(by_key) > 1 else "teacher" for key in by_key}
    if adaptors is None or (callable(adaptors) and not isinstance(adaptors, (Mapping, Sequence))):
        return {key: Teacher(model, adaptors, names[key]) for key, model in by_key.items()}
    if isinstance(adaptors, Mapping):
        if missing := by_key.keys() ^ adaptors.keys():
            raise ConfigError(
                f"the teachers are {', '.join(by_key)} and the adaptors {', '.join(map(str, adaptors))}: "
                f"{', '.join(map(repr, sorted(map(str, missing))))} is in one of them only",
                field="adaptor_T",
            )
        return {key: Teacher(model, adaptors[key], names[key]) for key, model in by_key.items()}
    if not isinstance(adaptors, Sequence) or len(adaptors) != len(by_key):
        count = len(adaptors) if isinstance(adaptors, Sequence) else type(adaptors).__name__
        raise ConfigError(
            f"must be one for all, or one for each of the {len(by_key)} teachers, got {count}", field="adaptor_T"
        )
    return {key: Teacher(model, one, names[key]) for (key, model), one in zip(by_key.items(), adaptors, strict=True)}


def _models(models: Any) -> dict[str, nn.Module]:
    if isinstance(models, (Mapping, nn.ModuleDict)):
        found = dict(models.items())
    elif isinstance(models, (list, tuple, nn.ModuleList)):
        found = {str(place): model for place, model in enumerate(models)}
    else:
        one = ". For one teacher use GeneralDistiller, or a list of one" if isinstance(models, nn.Module) else ""
        raise ConfigError(
            f"must be a list of models, or a mapping by key, got {type(models).__name__}{one}", field="model_T"
        )
    if not found:
        raise ConfigError("holds no teacher", field="model_T")
    for key, model in found.items():
        if not isinstance(key, str):
            raise ConfigError(f"must have text for keys, got {key!r}", field="model_T")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"must be a model, got {type(model).__name__}", field=f"model_T.{key}")
    return found
