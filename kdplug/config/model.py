"""The model that every config is: frozen, closed to unknown keys, and wrong only in our own words."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kdplug.config.text import (
    Document,
    json_document,
    read_document,
    read_text,
    write_json,
    write_yaml,
    yaml_document,
)
from kdplug.config.words import in_words, shown
from kdplug.errors import ConfigError, KdplugError, UnknownKeyError, did_you_mean, nearest
from kdplug.host.bounded_json import CONFIG, json_value

_MOST_SHOWN = 10
"""How many problems of a config an error lists."""


class ConfigModel(BaseModel):
    """Frozen data that round-trips through dict, JSON and YAML.

    Every way to make one raises one error of the ``KdplugError`` family, with the dotted path of each wrong value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    retired: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Keys that exist no more, and what to do instead."""

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            problem = _one_error(_problems(type(self), error), error.error_count())
            raise problem from problem.__cause__

    # Tells pydantic that this is no constructor of its own, so that nested models report their errors to the outer one.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """pydantic's, with our errors."""
        return cls._checked(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """pydantic's, with our errors."""
        with suppress(UnicodeDecodeError, json.JSONDecodeError):  # pydantic says what is wrong with these
            json_value(json_data if isinstance(json_data, str) else bytes(json_data).decode("utf-8"), CONFIG)
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            problem = _one_error(_problems(cls, error), error.error_count())
            raise problem from problem.__cause__

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read plain data, as ``to_dict`` writes it.

        Raises: ``ConfigError`` or ``EntryError`` that names the path of each wrong value.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{cls.__name__}.from_dict takes a mapping of keys to values, got {shown(data)}")
        return cls._checked(dict(data))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read JSON text."""
        return cls._from_document(json_document(text))

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read YAML 1.2 text."""
        return cls._from_document(yaml_document(text))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``.yaml``, ``.yml`` or ``.json`` file. Errors name the line."""
        return cls._from_document(read_document(path))

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """Read a JSON file, whatever its name ends in."""
        return cls._from_document(json_document(read_text(path), Path(path).name))

    def to_dict(self) -> dict[str, Any]:
        """Fresh plain data: every key, components in the spelling that they came in."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """JSON text."""
        return write_json(self.to_dict())

    def to_yaml(self) -> str:
        """YAML 1.2 text."""
        return write_yaml(self.to_dict())

    def with_defaults(self, **values: Any) -> Self:
        """A copy in which values stand for absent keys. They do not count as given."""
        copied = self.model_copy()
        copied.__dict__.update(values)
        return copied

    def _fill(self, **values: Any) -> None:
        """Write values that stand for absent keys. They do not count as given."""
        self.__dict__.update(values)

    @classmethod
    def _from_document(cls, document: Document) -> Self:
        return cls._checked(document.data, place=document.place)

    @classmethod
    def _checked(cls, data: object, *, place: Callable[[str], str] | None = None, **options: Any) -> Self:
        try:
            return super().model_validate(data, **options)
        except ValidationError as error:
            problems, count = _problems(cls, error), error.error_count()
        if place is not None:
            for problem in problems:
                problem.message += f"   ({place(problem.field)})"
        problem = _one_error(problems, count)
        raise problem from problem.__cause__


def _problems(model: type[ConfigModel], error: ValidationError) -> list[KdplugError]:
    """The first problems; to look for the nearest key and the line of each of thousands would take minutes."""
    return [_problem(model, dict(one)) for one in error.errors(include_url=False)[:_MOST_SHOWN]]


def _problem(model: type[ConfigModel], one: dict[str, Any]) -> KdplugError:
    path = one["loc"]
    ours = (one.get("ctx") or {}).get("error")
    if isinstance(ours, KdplugError):
        return ours.at(*path)
    if one["type"] == "extra_forbidden":
        return UnknownKeyError(_unknown(_model_at(model, path[:-1]), str(path[-1]))).at(*path)
    return ConfigError(in_words(one)).at(*path)


def _unknown(model: type[ConfigModel], key: str) -> str:
    if key in model.retired:
        return model.retired[key]
    names = [*model.model_fields, *model.retired]
    near = did_you_mean(key, names) or f" The keys here are: {', '.join(model.model_fields)}"
    meant = model.retired.get(nearest(key, names) or "")
    return f"unknown key.{near}{f' It {meant}' if meant else ''}"


def _model_at(model: type[ConfigModel], path: tuple[str | int, ...]) -> type[ConfigModel]:
    for part in path:
        if part in model.model_fields:
            model = _model_in(model.model_fields[str(part)].annotation) or model
    return model


def _model_in(annotation: object) -> type[ConfigModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, ConfigModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _one_error(problems: list[KdplugError], count: int) -> KdplugError:
    """The one problem itself, so that its class can be caught, or ``count`` problems, each on a line of its own."""
    if count == 1:
        return problems[0]
    first = "" if count == len(problems) else f", the first {len(problems)} of which are"
    return ConfigError(f"{count} problems{first}:" + "".join(f"\n    {problem}" for problem in problems))
