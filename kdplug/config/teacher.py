"""Config keys that set where a teacher comes from and whether it changes."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from kdplug.config.key import Place
from kdplug.config.model import SCHEMA_OR_NONE, is_none, named_or_none, read_component, write_component
from kdplug.errors import ConfigError
from kdplug.host.spec import ComponentSpec

_UPDATE = Place("teacher_updates", optional=True)

TeacherUpdateComponent = Annotated[
    ComponentSpec | None,
    PlainValidator(named_or_none(_UPDATE)),
    PlainSerializer(write_component),
    SCHEMA_OR_NONE,
    _UPDATE,
]

TASK = ComponentSpec("task")
"""The teacher that the task builds."""

SELF = ComponentSpec("self")
"""The student with its adapters off."""

COPY = ComponentSpec("copy")
"""A copy of the untrained student, for ``teacher_update``."""

WORDS = (TASK, SELF, COPY)
_BY_NAME = {spec.name: spec for spec in WORDS}
_TEACHER = Place("teachers", optional=True, words=tuple(_BY_NAME))
_named = named_or_none(_TEACHER)


def _read_teacher(data: object) -> ComponentSpec | None:
    if is_none(data):
        return None
    spec = read_component(data)
    if spec.name not in _BY_NAME:
        return _named(data)
    if spec.args or spec.settings:
        raise ConfigError(f"{spec.name} has no settings. Write teacher: {spec.name}")
    return _BY_NAME[spec.name]


RecipeTeacher = Annotated[
    ComponentSpec | None, PlainValidator(_read_teacher), PlainSerializer(write_component), SCHEMA_OR_NONE, _TEACHER
]
"""The source of a recipe's teacher: one of ``WORDS``, an entry of the kind ``teachers``, or none."""


def check_update(teacher: ComponentSpec | None, update: ComponentSpec | None) -> None:
    """Raise ``ConfigError`` if a copy is not updated, or an update has no model to change."""
    if teacher == COPY and update is None:
        raise ConfigError(
            "is copy, a copy of the untrained student, and nothing changes it. Set distillation.teacher_update, such as "
            "{name: ema, decay: 0.999}"
        ).at("teacher")
    if update is not None and teacher not in (COPY, TASK):
        raise ConfigError(
            f"{update.name!r} needs a model to update. Set teacher: copy, which starts as a copy of the student"
        ).at("distillation", "teacher_update")
