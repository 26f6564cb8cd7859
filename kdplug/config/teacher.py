"""Config keys that set where a teacher comes from and whether it changes."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from kdplug.config.key import Place
from kdplug.config.model import SCHEMA_OR_NONE, named_or_none, write_component
from kdplug.host.spec import ComponentSpec

_UPDATE = Place("teacher_updates", optional=True)

TeacherUpdateComponent = Annotated[
    ComponentSpec | None,
    PlainValidator(named_or_none(_UPDATE)),
    PlainSerializer(write_component),
    SCHEMA_OR_NONE,
    _UPDATE,
]
