"""Tables of config keys."""

from __future__ import annotations

from importlib import import_module

from kdplug.config.key import not_identity
from spans.annotation import default_text, field_text
from spans.prose import cell


def keys_of(room: str, model: str) -> str:
    """Key, type, default and meaning of every field of a model in ``kdplug.config``."""
    config = getattr(import_module(f"kdplug.config.{room}"), model)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in config.model_fields.items():
        assert field.description, f"{model}.{name} has no description"
        rows.append(f"| `{name}` | {cell(field_text(field))} | {default_text(field)} | {cell(field.description)} |")
    free = ", ".join(f"`{name}`" for name in not_identity(config))
    if free:
        rows += ["", f"Not compared when a run is resumed: {free}."]
    return "\n".join(rows)
