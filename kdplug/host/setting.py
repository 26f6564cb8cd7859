"""Validation of settings, with readable errors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from kdplug.errors import KdplugError, SettingError, UnknownKeyError, did_you_mean
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.name import shown
from kdplug.host.settings_model import setting_names

if TYPE_CHECKING:
    from kdplug.host.entry import Entry
    from kdplug.host.spec import ComponentSpec


def validated(entry: Entry, spec: ComponentSpec) -> BaseModel:
    """Validate the settings in ``spec`` and add the defaults of ``entry``.

    Raises: ``SettingError`` or ``UnknownKeyError``, with the setting as its field.
    """
    names = setting_names(entry.settings)
    given = _by_name(entry, spec, names)
    check = partial(entry.settings.model_validate, given)
    done = run_plugin_code(check, f"checking the settings of {entry.qualified!r}", entry.dist, "hook")
    if isinstance(done.error, ValidationError):
        raise _in_words(entry, spec, names, given, done.error) from done.error
    if done.error is not None:
        raise SettingError(f"{entry.qualified} failed to validate {spec}: {described(done.error)}") from done.error
    assert done.value is not None
    return done.value


def values_of(model: BaseModel) -> dict[str, Any]:
    """Map setting names to validated values."""
    return {field.alias or name: getattr(model, name) for name, field in type(model).model_fields.items()}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as plain data for a config. Values that are not data, such as a default function, are dropped."""
    found = {}
    for name, value in values.items():
        with suppress(PydanticSerializationError):
            found[name] = to_jsonable_python(value, inf_nan_mode="constants")
    return found


def _by_name(entry: Entry, spec: ComponentSpec, names: list[str]) -> dict[str, Any]:
    if len(spec.args) > len(names):
        known = f"only {_count(len(names))} ({', '.join(names)})" if names else "no settings"
        raise SettingError(f"{entry.qualified} got {_count(len(spec.args))} by position, but has {known}: {spec}")
    given = dict(zip(names, spec.args, strict=False))
    for name, value in spec.settings.items():
        if name in given:
            raise SettingError(f"is set twice, by position and by name: {spec}", field=name)
        given[name] = value
    return given


def _count(number: int) -> str:
    return f"{number} setting{'' if number == 1 else 's'}"


def _in_words(
    entry: Entry, spec: ComponentSpec, names: list[str], given: Mapping[str, Any], error: ValidationError
) -> KdplugError:
    errors = error.errors(include_url=False)
    first = errors[0]
    path = _path(first["loc"], given)
    ours = (first.get("ctx") or {}).get("error")
    if isinstance(ours, KdplugError):  # of a component inside the settings, such as the base of a task
        return ours.at(*path)
    if first["type"] == "extra_forbidden" and len(path) > 1:
        keys = sorted(_names_at(entry.settings, path[:-1]))
        message = f"there is no such key.{did_you_mean(path[-1], keys)} The keys are {', '.join(keys)}"
        return UnknownKeyError(message, field=".".join(path))
    if first["type"] == "extra_forbidden":
        known = f" Its settings: {', '.join(names)}." if names else " It has no settings."
        return UnknownKeyError(f"{entry.qualified} has no setting {path[0]!r}.{did_you_mean(path[0], names)}{known}")
    place = names.index(path[0]) if path and path[0] in names else len(spec.args)
    hint = f"   ({spec}: the {_ordinal(place + 1)} setting is {path[0]!r})" if place < len(spec.args) else ""
    if first["type"] == "missing":
        return SettingError(f"is required by {entry.qualified}{hint}", field=".".join(path))
    empty = [".".join(found) for found in (_path(one["loc"], given) for one in errors if one["input"] is None)]
    if path and ".".join(path) in empty:
        also = f", and also {', '.join(rest)}" if (rest := list(dict.fromkeys(empty))[1:]) else ""
        return SettingError(
            f"is empty: fill it in{also}. To see what each setting means, run kdplug plugins show {entry.qualified}{hint}",
            field=".".join(path),
        )
    same = [other for other in errors if _path(other["loc"], given) == path]
    return SettingError(_any_of(same) + hint, field=".".join(path))


def _path(location: tuple[int | str, ...], given: Any) -> list[str]:
    """Return the path of an error in the given settings, without the labels that pydantic adds for union branches."""
    path: list[str] = []
    for part in location:
        held = (
            part in given if isinstance(given, Mapping) else isinstance(part, int) and isinstance(given, (list, tuple))
        )
        if held or not path:
            path.append(str(part))
            given = given[part] if held else None
    return path


def _names_at(model: type[BaseModel], path: list[str]) -> set[str]:
    """Return the valid keys of the nested models at ``path``."""
    models = [model]
    for part in path:
        fields = [field for one in models for name, field in one.model_fields.items() if part in (name, field.alias)]
        models = [found for field in fields for found in _models_in(field.annotation)] or models
    return {name for one in models for name in setting_names(one)}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _any_of(errors: list[Any]) -> str:
    """Merge the errors of a union's branches into one ``must be … or …, got …``."""
    texts = [in_words(error) for error in errors]
    if len(texts) == 1 or not all(text.startswith("must be ") for text in texts):
        return texts[0]
    got = f", got {shown(errors[0]['input'])}"
    wanted = dict.fromkeys(text.removeprefix("must be ").removesuffix(got).split(",")[0] for text in texts)
    return f"must be {' or '.join(wanted)}{got}"


def in_words(error: Mapping[str, Any]) -> str:
    """Format a pydantic error as ``must be …, got …``."""
    context: dict[str, Any] = error.get("ctx") or {}
    got = f", got {shown(error['input'])}"
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    for key, sign in bounds.items():
        if key in context:
            bound = f"{context[key]:g}" if isinstance(context[key], float) else context[key]
            return f"must be {sign} {bound}{got}"
    if error["type"] in ("literal_error", "enum"):
        return f"must be {context['expected']}{got}"
    if error["type"] == "finite_number":
        return f"must be a finite number{got}"
    if error["type"] in ("model_type", "dict_type", "dataclass_type"):
        return f"must be a mapping{got}"
    text = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    if text != error["msg"] and error["type"] != "value_error":
        return f"must be {text}{got}"
    return f"{text[:1].lower()}{text[1:]}{got}"


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
