"""Config keys that hold lists of components: the student's transforms, and evaluators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from kdplug.config.key import Place
from kdplug.config.model import COMPONENT_SCHEMA, ConfigModel, read_component, write_component
from kdplug.config.words import shown
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.registry import REGISTRIES
from kdplug.host.spec import ComponentSpec


def _listed(place: Place) -> Callable[[object], tuple[ComponentSpec, ...]]:
    """Return a function that reads a list of components and looks their names up. Nothing is imported."""

    def read(data: object) -> tuple[ComponentSpec, ...]:
        if data is None:
            return ()
        if not isinstance(data, (list, tuple)):
            raise ConfigError(f"must be a list of components, such as [{{name: …}}], got {shown(data)}")
        found: list[ComponentSpec] = []
        for number, one in enumerate(data):
            try:
                spec = read_component(one)
                REGISTRIES[place.plural].check(spec)
            except KdplugError as error:
                raise error.at(number) from error.__cause__
            if spec in found:
                raise ConfigError(f"is the same as number {found.index(spec)}: {shown(one)}. Remove one of them").at(
                    number
                )
            found.append(spec)
        return tuple(found)

    return read


def _write(specs: tuple[ComponentSpec, ...]) -> list[Any]:
    return [write_component(spec) for spec in specs]


_SCHEMA = WithJsonSchema({"type": ["array", "null"], "items": COMPONENT_SCHEMA})
_TRANSFORMS, _EVALUATORS = Place("student_transforms", many=True), Place("evaluators", many=True)

StudentTransformList = Annotated[
    tuple[ComponentSpec, ...], PlainValidator(_listed(_TRANSFORMS)), PlainSerializer(_write), _SCHEMA, _TRANSFORMS
]
EvaluatorList = Annotated[
    tuple[ComponentSpec, ...], PlainValidator(_listed(_EVALUATORS)), PlainSerializer(_write), _SCHEMA, _EVALUATORS
]


class StudentConfig(ConfigModel):
    """The ``student`` section of a recipe: changes to the student of any task, of which the task is unaware."""

    transforms: StudentTransformList = Field(
        default=(),
        description="transforms of the student, such as adapters or quantisation-aware layers: each prepares the student, in "
        "order, before the optimizer is built, and finishes it, in reverse order, before it is measured and saved",
    )
