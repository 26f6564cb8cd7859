"""Every recipe in ``examples/`` is accepted by the JSON Schema and by kdplug, with the plugins that are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from kdplug.config.recipe import Recipe
from kdplug.config.schema.build import every_entry, no_entry, schema_of
from kdplug.config.text import read_document
from kdplug.host.active import isolated
from kdplug.host.metadata import scan

EXAMPLES = Path(__file__).parents[3] / "examples"
PACKAGES = {file.parent for file in EXAMPLES.glob("*/pyproject.toml")}  # whose recipes need the package
RECIPES = sorted(
    path for path in EXAMPLES.rglob("*") if path.suffix in (".yaml", ".yml") and PACKAGES.isdisjoint(path.parents)
)


@pytest.fixture
def host():
    """In place of this suite's toys, what is installed."""
    with isolated(scan()) as host:
        yield host


def test_there_is_an_example():
    assert RECIPES


@pytest.mark.parametrize("load", [every_entry, no_entry], ids=["with settings", "names"])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_example_is_accepted_by_both(path, load):
    validator = Draft7Validator(schema_of("recipe", load).data)
    assert [error.message for error in validator.iter_errors(read_document(path).data)] == []
    assert Recipe.from_file(path).distillation.resolved()


def test_no_installed_entry_is_broken_and_each_has_a_doc():
    schema = schema_of("recipe")
    assert schema.errors == ()
    named = {key: one for key, one in schema.data["definitions"].items() if ":" in key}
    assert [key for key, one in named.items() if not one["description"]] == []


def test_the_settings_of_the_digits_task_are_described():
    task = schema_of("recipe").data["definitions"]["tasks.kdplug-tasks:digits"]
    assert task["properties"]["labels_per_class"] == {
        "default": 10,
        "maximum": 90,
        "minimum": 1,
        "type": "integer",
        "description": "number of labels of each class that the student sees",
    }
