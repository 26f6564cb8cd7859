"""Every setting of a first-party entry is described where an editor, ``kdplug new`` and the reference look for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kdplug.config.schema.entry import entry_schema
from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.registry import REGISTRIES

OWN = [entry for registry in REGISTRIES.values() for entry in registry.entries() if entry.dist in FIRST_PARTY]


def undescribed(schema: Any) -> Iterator[str]:
    """The keys in a schema, those of the groups that it defines included, of which it says nothing."""
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield from () if value.get("description") else [name]
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from undescribed(inner)


def test_a_key_without_a_word_is_found_at_any_depth():
    group = {"anyOf": [{"properties": {"b": {"type": "string"}, "c": {"description": "it"}}}]}
    assert list(undescribed({"properties": {"a": {}}, "definitions": {"Group": group}})) == ["a", "b"]


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: f"{entry.kind.noun} {entry.name}")
def test_the_schema_describes_every_setting_of_a_first_party_entry(entry):
    assert list(undescribed(entry_schema(entry, load=True).settings)) == []
