"""A group of settings that a recipe writes as a mapping."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Refuses keys that it does not know, and does not change. What stands below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


def or_text(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a group say that a text may stand in for it."""
    rest = {key: schema.pop(key) for key in list(schema) if key not in ("title", "description")}
    schema["anyOf"] = [{"type": "string"}, rest]
