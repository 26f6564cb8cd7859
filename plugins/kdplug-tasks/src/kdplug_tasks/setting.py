"""A group of settings that a recipe writes as a mapping."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 2**31 - 1
"""The largest count or seed, as in the core's own keys."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
WholeNumber = Annotated[int, Field(ge=0, le=LARGEST)]


class Settings(BaseModel):
    """Refuses keys that it does not know, and does not change. What stands below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


def or_text(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a group say that a text may stand in for it."""
    rest = {key: schema.pop(key) for key in list(schema) if key not in ("title", "description")}
    schema["anyOf"] = [{"type": "string"}, rest]
