"""The keys of a config model as a table."""

from __future__ import annotations

from importlib import import_module

from spans.annotation import default_text, field_text
from spans.meaning import MEANINGS
from spans.prose import cell


def keys_of(room: str, model: str) -> str:
    """Key, type, default and meaning of every field of a model in ``kdplug.config``."""
    fields = getattr(import_module(f"kdplug.config.{room}"), model).model_fields
    meanings = MEANINGS[model]
    assert set(fields) == set(meanings), (
        f"{model}: {sorted(set(fields) ^ set(meanings))} without key or without meaning"
    )
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        rows.append(f"| `{name}` | {cell(field_text(field))} | {default_text(field)} | {cell(meanings[name])} |")
    return "\n".join(rows)
