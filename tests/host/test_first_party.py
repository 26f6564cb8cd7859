"""The table of our own packages against their metadata."""

from __future__ import annotations

import tomllib
from pathlib import Path

from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.kind import KINDS

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def test_the_table_equals_the_entry_points_of_the_packages() -> None:
    found = {}
    for path in PLUGINS.glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        groups = project.get("entry-points", {})
        found[project["name"]] = {
            plural: tuple(sorted(groups[kind.group])) for plural, kind in KINDS.items() if kind.group in groups
        }
    assert {package: dict(offers) for package, offers in FIRST_PARTY.items()} == found
