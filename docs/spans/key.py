"""Tables of config keys."""

from __future__ import annotations

from importlib import import_module

from kdplug.config.schema.doc import MEANINGS
from spans.annotation import default_text, field_text
from spans.prose import cell


def keys_of(module: str, model: str) -> str:
    """Return key, type, default and meaning of every field of a model in ``kdplug.config``."""
    fields = getattr(import_module(f"kdplug.config.{module}"), model).model_fields
    meanings = MEANINGS[model]
    assert set(fields) == set(meanings), (
        f"{model}: {sorted(set(fields) ^ set(meanings))} are not both a key and documented"
    )
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        rows.append(f"| `{name}` | {cell(field_text(field))} | {default_text(field)} | {cell(meanings[name])} |")
    return "\n".join(rows)
