"""Catalogue of the first-party entries: docstring, inputs, declarations and settings."""

from __future__ import annotations

from kdplug.cli.sheet import declarations
from kdplug.host.entry import Entry
from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.registry import REGISTRIES
from spans.annotation import default_text, field_text
from spans.prose import cell, prose


def catalogue(plural: str, site: str | None = None) -> str:
    """Return a section for each first-party callable of a kind, headed by all of its names."""
    groups: dict[tuple[str, object], list[Entry]] = {}
    for entry in REGISTRIES[plural].entries():
        if entry.dist in FIRST_PARTY and (site is None or _is_at(entry, site)):
            groups.setdefault((entry.dist, entry.target), []).append(entry)
    assert groups, f"no first-party {plural} installed"
    return "\n\n".join(_section(group) for group in groups.values())


def _is_at(entry: Entry, site: str) -> bool:
    """Return whether ``site`` is the first place whose inputs include those of the entry."""
    return next(name for name, known in entry.kind.slots.items() if set(entry.inputs) <= set(known)) == site


def _section(entries: list[Entry]) -> str:
    entry = entries[0]
    names = " = ".join(f"`{one.name}`" for one in entries)
    inputs = f" Inputs: {', '.join(f'`{name}`' for name in entry.inputs)}." if entry.inputs else ""
    found = declarations(entry.load()) if entry.kind.plural == "losses" else []
    declares = f" Declares {', '.join(f'`{name}`' for name in found)}." if found else ""
    parts = [f"### {names}", f"*{entry.dist}*.{inputs}{declares}", prose(entry.load()), _settings(entry)]
    return "\n\n".join(part for part in parts if part)


def _settings(entry: Entry) -> str:
    fields = entry.settings.model_fields
    if not fields:
        return ""
    rows = [
        f"| `{field.alias or name}` | {cell(field_text(field))} | {cell(default_text(field))} |"
        for name, field in fields.items()
    ]
    return "\n".join(["| setting | type | default |", "|---|---|---|", *rows])
