"""Groups of settings: the models of settings that are written as a mapping."""

from __future__ import annotations

from pydantic import BaseModel

from kdplug.cli.sheet import groups_of
from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.registry import REGISTRIES
from spans.annotation import default_text, field_text
from spans.prose import cell, prose


def groups(plural: str) -> str:
    """Return a section for each group in the settings of first-party entries, nested groups included."""
    entries = [entry for entry in REGISTRIES[plural].entries() if entry.dist in FIRST_PARTY]
    found = dict.fromkeys(group for entry in entries for group in groups_of(entry.settings))
    return "\n\n".join(_section(group) for group in sorted(found, key=lambda group: group.__name__))


def _section(group: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {cell(field_text(field))} | {cell(default_text(field))} | {cell(field.description or '')} |"
        for name, field in group.model_fields.items()
    ]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n\n".join([f"### `{group.__name__}`", prose(group), "\n".join([*head, *rows])])
